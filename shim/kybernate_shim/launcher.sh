#!/bin/sh
# The runtime that containerd calls in place of runc. What concerns no managed container goes to the next runtime at once.
unset LD_LIBRARY_PATH LD_PRELOAD PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE PYTHONDEVMODE PYTHONINSPECT
PATH=@PATH@
export PATH
ours=
for word do
    case $word in
        create | restore) ours=1 ;;
        '' | . | .. | */*) ;;
        *) [ -d @RUN@/keepers/"$word" ] && ours=1 ;;
    esac
done
[ "$ours" ] || exec @NEXT@ "$@"
exec @PYTHON@ -IS @LIB@/hook.py "$@"
