"""The scripts of ./dev and of the tests. What they call of the machine (apt-get, sudo) are stand-ins on the PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
VENDOR = "Types: deb\nURIs: https://vendor.example/tool/\nSuites: bookworm\nComponents: main\n"


def sh(here: Path, code: str, *parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` after the parts of dev.d, with the programs in `here` before the machine's; as_root is nobody else."""
    lines = [f'. "$ROOT/dev.d/{part}.sh"' for part in parts]
    given = {**os.environ, "ROOT": str(ROOT), "PATH": f"{here}:{os.environ['PATH']}", **environment}
    script = "\n".join(["set -eu", *lines, 'as_root() { "$@"; }', code])
    return subprocess.run(
        ["sh", "-c", script], cwd=here, env=given, capture_output=True, text=True, timeout=60, check=False
    )


def program(here: Path, name: str, text: str) -> None:
    (here / name).write_text(f"#!/bin/sh\n{text}\n")
    (here / name).chmod(0o755)


def entry(here: Path, archives: dict[str, str], known: str = "") -> str:
    """The archive's entry for bookworm, where /etc/apt has these files and apt knows these addresses for Debian's."""
    for name, text in archives.items():
        (here / name).write_text(text)
    program(here, "apt-get", f"echo '{known}'")
    text = (ROOT / "dev.d/archive.sh").read_text().replace("/etc/apt/sources.list.d", str(here))
    (here / "archive.sh").write_text(text.replace("/etc/apt/sources.list", f"{here}/sources.list"))
    done = sh(here, f". {here}/archive.sh; archive_entry bookworm trixie")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_vendors_entry_for_the_suite_is_not_taken_for_debians(tmp_path: Path) -> None:
    both = {"azure.sources": VENDOR, "debian.sources": DEBIAN}
    assert "mirror.example" in entry(tmp_path, both, known="http://mirror.example/debian/")


def test_the_first_entry_is_taken_where_apt_knows_none(tmp_path: Path) -> None:
    assert "vendor.example" in entry(tmp_path, {"azure.sources": VENDOR, "debian.sources": DEBIAN})


@pytest.mark.parametrize(
    "cdrom",
    [
        {"a.list": "deb cdrom:[Debian GNU/Linux 12 _Bookworm_ - amd64 NETINST]/ bookworm main\n"},
        {"a.list": "deb [trusted=yes] cdrom:[Debian 12]/ bookworm main\n"},
        {"a.sources": DEBIAN.replace("http://mirror.example/debian", "cdrom:[Debian 12]/")},
    ],
)
def test_a_cdrom_is_no_archive(tmp_path: Path, cdrom: dict[str, str]) -> None:
    line = "deb [arch=amd64] http://mirror.example/debian bookworm main\n"
    assert "URIs: http://mirror.example/debian\nArchitectures: amd64" in entry(tmp_path, {**cdrom, "b.list": line})


def test_apt_is_read_in_one_language(tmp_path: Path) -> None:
    """A stand-in for an apt that speaks German to who does not ask it for English."""
    program(
        tmp_path, "apt-cache", 'case $LC_ALL in C*) echo "  Candidate: 4.2-1" ;; *) echo "  Kandidat: 4.2-1" ;; esac'
    )
    done = sh(tmp_path, "choose 'criu 4.2'", "common", "packages", "archive", LC_ALL="de_DE.UTF-8", LANG="de_DE.UTF-8")
    assert (done.returncode, done.stdout) == (0, "- criu\n")


def test_lists_that_another_apt_reads_are_waited_for(tmp_path: Path) -> None:
    busy = 'echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt)" >&2; exit 100'
    program(tmp_path, "apt-get", f"echo >>calls; [ $(wc -l <calls) -ge 3 ] || {{ {busy}; }}")
    done = sh(tmp_path, "LISTS_SECONDS=0; apt_update", "common", "packages")
    assert done.returncode == 0
    assert (tmp_path / "calls").read_text() == "\n" * 3
    assert done.stdout.count("waits for another process") == 1
    assert "could not be read" not in done.stdout


def test_lists_that_stay_locked_are_an_error(tmp_path: Path) -> None:
    program(tmp_path, "apt-get", 'echo "E: Could not get lock /var/lib/apt/lists/lock." >&2; exit 100')
    done = sh(tmp_path, "LISTS_SECONDS=0; apt_update", "common", "packages")
    assert done.returncode == 2
    assert "still locked" in done.stderr


def test_lists_that_cannot_be_read_are_gone_on_without(tmp_path: Path) -> None:
    program(tmp_path, "apt-get", 'echo "E: Failed to fetch it" >&2; exit 100')
    done = sh(tmp_path, "apt_update", "common", "packages")
    assert done.returncode == 0
    assert "Failed to fetch it" in done.stderr


@pytest.fixture
def policy(tmp_path: Path) -> str:
    """Lines that put the policy and its lock below the test's folder."""
    return f"POLICY={tmp_path}/policy-rc.d SETUP_LOCK={tmp_path}/lock"


def test_services_are_held_while_packages_are_installed(tmp_path: Path, policy: str) -> None:
    program(tmp_path, "apt-get", f"cat {tmp_path}/policy-rc.d; flock -n {tmp_path}/lock true || echo locked")
    done = sh(tmp_path, f"{policy}; apt held install", "common", "packages")
    assert "exit 101" in done.stdout
    assert "locked" in done.stdout
    assert not (tmp_path / "policy-rc.d").exists()


@pytest.mark.parametrize("ending", ["exit 1", "kill -TERM $PPID"])
def test_an_installation_that_fails_releases_the_services(tmp_path: Path, policy: str, ending: str) -> None:
    program(tmp_path, "apt-get", ending)
    done = sh(tmp_path, f"{policy}; apt held install", "common", "packages")
    assert done.returncode != 0
    assert not (tmp_path / "policy-rc.d").exists()


def test_a_policy_of_somebody_else_stays(tmp_path: Path, policy: str) -> None:
    (tmp_path / "policy-rc.d").write_text("#!/bin/sh\nexit 0\n")
    program(tmp_path, "apt-get", "")
    done = sh(tmp_path, f"{policy}; apt held install; release_orphan", "common", "packages")
    assert done.returncode == 0
    assert (tmp_path / "policy-rc.d").read_text() == "#!/bin/sh\nexit 0\n"


def test_the_policy_of_a_killed_setup_is_removed_by_the_next(tmp_path: Path, policy: str) -> None:
    program(tmp_path, "apt-get", "kill -KILL $PPID")
    killed = sh(tmp_path, f"{policy}; apt held install", "common", "packages")
    assert killed.returncode != 0
    assert (tmp_path / "policy-rc.d").exists()
    done = sh(tmp_path, f"{policy}; missing() {{ :; }}; setup_packages", "common", "packages")
    assert done.returncode == 0
    assert not (tmp_path / "policy-rc.d").exists()


def test_the_policy_of_an_installation_that_goes_on_stays(tmp_path: Path, policy: str) -> None:
    """Another ./dev begins and cleans up while apt-get runs."""
    parts = "".join(f'. "$ROOT/dev.d/{name}.sh"; ' for name in ("common", "packages"))
    other = f'set -eu; {parts} as_root() {{ "$@"; }}; {policy}; release_orphan'
    program(tmp_path, "apt-get", f"sh -c '{other}'; ls {tmp_path}")
    done = sh(tmp_path, f"{policy}; apt held install", "common", "packages")
    assert "policy-rc.d" in done.stdout.split(), done.stderr


def test_cgroups_are_given_back_where_not_all_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    program(tmp_path, "awk", f"echo {tmp_path}/a {tmp_path}/missing")
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", ROOT / "tests/on_v2.sh", "true"], env=path, capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert list((tmp_path / "a").iterdir()) == []


def test_clean_says_what_it_lacks(tmp_path: Path) -> None:
    code = f"PYTHON={tmp_path}/none; release_orphan() {{ :; }}; verb_clean"
    done = sh(tmp_path, code, "common", "verbs")
    assert done.returncode == 2
    assert "./dev setup makes it" in done.stderr


def test_caches_are_the_users_before_root_writes_into_them(tmp_path: Path) -> None:
    program(tmp_path, "id", "echo 1000")
    code = f"PYTHON=true; as_root() {{ ls -d {tmp_path}/cache/kybernate; }}; python_as_root -m x"
    done = sh(tmp_path, code, "common", XDG_CACHE_HOME=f"{tmp_path}/cache")
    assert done.stdout.strip() == f"{tmp_path}/cache/kybernate"


def test_the_environment_is_waited_for_with_a_word_and_a_limit(tmp_path: Path) -> None:
    (tmp_path / "dev.d").mkdir()
    (tmp_path / "dev.d/python.sh").touch()
    program(tmp_path, "flock", "printf '%s\\n' $1; exit 1")
    done = sh(tmp_path, f"ROOT={tmp_path}; setup_python", "common", "python")
    assert done.returncode == 2
    assert done.stdout.split("\n") == ["-n", "dev: .venv: waits for another ./dev", "-w", ""]
    assert "another ./dev has held .venv" in done.stderr


def test_only_what_does_not_fit_comes_from_a_newer_suite(tmp_path: Path) -> None:
    """Beside a newer libc6 its headers do not; what came along from there would upgrade OpenSSL, and dpkg refuse it."""
    machine = """
        own_suite() { echo bookworm; }
        newer_suites() { echo trixie sid; }
        add_newer() { :; }
        fits() { case "$1 $2" in "- "*libc6-dev*) return 1 ;; esac; }
        apt_install() { echo "$1:" $2; }
    """
    wanted = "- gcc\n- libc6-dev\n- openssh-client\nsid criu\ntrixie etcd-server"
    done = sh(tmp_path, f"{machine}\ninstall_chosen '{wanted}'", "common", "packages")
    assert done.stdout.splitlines() == [
        "-: gcc openssh-client",
        "trixie: libc6-dev",
        "sid: criu",
        "trixie: etcd-server",
    ]
