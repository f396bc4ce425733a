#!/bin/sh
# CRIU's action script, called at each stage of a dump. Only one stage has a question: may the processes end now?
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
exec @PYTHON@ -IS @LIB@/postdump.py "$KYBERNATE_CONTAINER" "$KYBERNATE_IMAGES" "$KYBERNATE_UNTIL"
