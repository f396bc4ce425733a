"""Kubeconfigs and service accounts, as files of every kind; secrets stay out of every text."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kybernate.errors import ExternalError
from kybernate.kube import kubeconfig
from kybernate.kube.credentials import Access, Credentials, load_credentials, tls_context
from kybernate.kube.errors import CredentialsDeadlineError, CredentialsError

SECRET = "s3cr3t-t0k3n"


def config(
    tmp_path: Path, user: dict[str, Any], name: str = "config", *, cluster: dict[str, Any] | None = None
) -> Path:
    value = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": "https://k8s.example.io:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "current-context": "x",
    }
    path = tmp_path / name
    path.write_text(json.dumps(value))
    return path


def plugin(tmp_path: Path, body: str) -> dict[str, Any]:
    """A user whose exec plugin is a shell script."""
    path = tmp_path / "plugin"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path), "interactiveMode": "Never"}}


def answer(**status: str) -> str:
    value = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"echo '{json.dumps(value)}'"


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_token_with_its_cluster_and_namespace(tmp_path: Path) -> None:
    loaded = await load_credentials(
        config(tmp_path, {"token": SECRET}, cluster={"tls-server-name": "other"}), environment={}
    )
    access = await loaded.access()
    assert (access.server, access.namespace) == ("https://k8s.example.io:6443", "team")
    assert (access.authorization, access.server_name, access.proxy) == (f"Bearer {SECRET}", "other", None)
    assert access.tls is not None
    assert access.tls.verify_mode is ssl.CERT_REQUIRED
    assert SECRET not in repr(access)
    assert SECRET not in repr(loaded)


async def test_a_token_file_beside_the_kubeconfig_and_no_verification(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(SECRET)
    path = config(tmp_path, {"tokenFile": "token"}, cluster={"insecure-skip-tls-verify": True})
    access = await (await load_credentials(path, environment={})).access()
    assert access.authorization == f"Bearer {SECRET}"
    assert access.tls is not None
    assert access.tls.verify_mode is ssl.CERT_NONE


async def test_several_files_are_one_and_the_environment_names_them(tmp_path: Path) -> None:
    first = config(tmp_path, {"token": SECRET}, "first")
    second = tmp_path / "second"
    second.write_text(
        json.dumps({"users": [], "clusters": [], "contexts": [{"name": "y", "context": {"cluster": "c", "user": "u"}}]})
    )
    loaded = await load_credentials(environment={"KUBECONFIG": f"{first}:{second}:{tmp_path / 'none'}"}, context="y")
    access = await loaded.access()
    assert (access.namespace, access.authorization) == ("default", f"Bearer {SECRET}")


async def test_proxies_come_from_the_kubeconfig_first(tmp_path: Path) -> None:
    environment = {"HTTPS_PROXY": "http://environment:1"}
    path = config(tmp_path, {}, cluster={"proxy-url": "http://own:2"})
    access = await (await load_credentials(path, environment=environment)).access()
    assert access.proxy is not None
    assert access.proxy.url == "http://own:2"
    access = await (await load_credentials(config(tmp_path, {}), environment=environment)).access()
    assert access.proxy is not None
    assert access.proxy.url == "http://environment:1"


async def test_a_plugins_token_is_renewed_before_it_expires(tmp_path: Path) -> None:
    count = tmp_path / "count"
    body = f"echo x >> {count}\n" + answer(token=SECRET, expirationTimestamp="2099-01-01T00:00:00Z")
    loaded = await load_credentials(config(tmp_path, plugin(tmp_path, body)), environment={})
    access = await loaded.access()
    assert access.authorization == f"Bearer {SECRET}"
    assert access.fresh_seconds is not None
    assert access.fresh_seconds > 86400
    assert count.read_text() == "x\n"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("echo cannot log in >&2; exit 3", "process returned 3. cannot log in"),
        ("echo no json", "failed to decode"),
        (answer(), "missing token or clientCertificateData"),
        (f'echo \'{{"token": "{SECRET}"}}\'', "missing key"),
        ("rm /nowhere/x", "returned 1"),
    ],
)
async def test_a_plugin_that_fails_is_an_error_and_not_a_nobody(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(CredentialsError) as failure:
        await load_credentials(config(tmp_path, plugin(tmp_path, body)), environment={})
    assert said in str(failure.value)
    assert SECRET not in str(failure.value)


async def test_a_plugin_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = config(tmp_path, plugin(tmp_path, f"sleep 3600 & echo $! $$ > {pids}.new; mv {pids}.new {pids}; wait"))
    loading = asyncio.create_task(load_credentials(path, environment={}, deadline_seconds=600))
    await until(pids.exists)
    loading.cancel()
    await asyncio.wait({loading})
    assert loading.cancelled()
    await until(lambda: not any(lives(pid) for pid in pids.read_text().split()))


async def test_a_plugin_has_a_deadline(tmp_path: Path) -> None:
    path = config(tmp_path, plugin(tmp_path, "sleep 3600"))
    with pytest.raises(CredentialsDeadlineError):
        await load_credentials(path, environment={}, deadline_seconds=0.5)


def lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("[]", "it is no kubeconfig"),
        ("{", "it is no kubeconfig"),
        ('{"users": 3}', "it is no kubeconfig"),
        ('{"current-context": "x", "contexts": []}', "Expected"),
        ("\x00", "it is no kubeconfig"),
    ],
)
async def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "config").write_text(text)
    with pytest.raises(CredentialsError, match=said):
        await load_credentials(tmp_path / "config", environment={})


async def test_an_entry_that_lacks_something_is_told_without_what_it_holds(tmp_path: Path) -> None:
    path = config(tmp_path, {"token": SECRET})
    value = json.loads(path.read_text())
    value["users"] = [{"token": SECRET}]
    path.write_text(json.dumps(value))
    with pytest.raises(CredentialsError) as failure:
        await load_credentials(path, environment={})
    assert SECRET not in str(failure.value)


async def test_impersonation_is_refused_rather_than_passed_over(tmp_path: Path) -> None:
    path = config(tmp_path, {"token": SECRET, "as": "nobody"})
    with pytest.raises(CredentialsError, match="impersonates"):
        await load_credentials(path, environment={})


async def test_nothing_in_the_current_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kubernetes", "msgspec", "yaml"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    path = config(tmp_path, {"token": SECRET})
    monkeypatch.chdir(tmp_path)
    assert (await (await load_credentials(path, environment={})).access()).authorization == f"Bearer {SECRET}"


async def test_nothing_to_load_from_is_told(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match="no such file"):
        await load_credentials(environment={"HOME": str(tmp_path)}, service_account=tmp_path)


async def test_keys_are_in_no_file_that_stays_and_in_none_that_others_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    key, certificate = self_signed(tmp_path)
    watcher = tmp_path / "seen"
    user = plugin(
        tmp_path,
        f"stat -c %a $TMPDIR > {watcher}\n"
        + answer(clientCertificateData=certificate, clientKeyData=key).replace("\\n", "\\\\n"),
    )
    data = {"certificate-authority-data": base64.b64encode(certificate.encode()).decode()}
    loaded = await load_credentials(config(tmp_path, user, cluster=data), environment={})
    access = await loaded.access()
    assert access.tls is not None
    assert len(access.tls.get_ca_certs()) == 1
    assert watcher.read_text() == "700\n"
    assert list((tmp_path / "tmp").iterdir()) == []


def self_signed(folder: Path) -> tuple[str, str]:
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    paths = ["-keyout", str(folder / "key"), "-out", str(folder / "crt"), "-subj", "/CN=test", "-days", "9"]
    subprocess.run([*argv, *paths], check=True, capture_output=True)
    return (folder / "key").read_text(), (folder / "crt").read_text()


def test_certificates_that_are_none_are_told(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    other, _ = self_signed(tmp_path)
    for wrong in ({"authority": "x"}, {"certificate": certificate, "key": other}, {"certificate": "x", "key": key}):
        with pytest.raises(CredentialsError, match="cannot be used"):
            tls_context("test", **wrong)  # type: ignore[arg-type]
    before = set(os.listdir("/proc/self/fd"))
    tls_context("test", authority=certificate, certificate=certificate, key=key)
    assert set(os.listdir("/proc/self/fd")) == before


def service_account(folder: Path, token: str = SECRET) -> dict[str, str]:
    _, certificate = self_signed(folder)
    (folder / "token").write_text(f"{token}\n")
    (folder / "ca.crt").write_text(certificate)
    (folder / "namespace").write_text("team")
    return {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}


async def test_in_a_pod_a_renewed_token_is_used_without_being_asked(tmp_path: Path) -> None:
    environment = service_account(tmp_path)
    loaded = await load_credentials(environment=environment, service_account=tmp_path)
    access = await loaded.access()
    assert (access.server, access.authorization, access.namespace) == (
        "https://[fd00::1]:443",
        f"Bearer {SECRET}",
        "team",
    )
    clock = Clock()
    credentials = Credentials(loaded._load, access, clock=clock)
    (tmp_path / "token").write_text("renewed")
    assert await credentials.access() is access
    clock.now += 10
    renewed = await credentials.access()
    assert renewed.authorization == "Bearer renewed"
    assert renewed.tls is access.tls, "connections go on"
    (tmp_path / "ca.crt").write_text(self_signed(tmp_path)[1])
    clock.now += 10
    assert (await credentials.access()).tls is not access.tls


async def test_a_token_that_cannot_be_read_now_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = await load_credentials(environment=service_account(tmp_path), service_account=tmp_path)
    access = await loaded.access()
    clock = Clock()
    credentials = Credentials(loaded._load, access, clock=clock)
    (tmp_path / "token").unlink()
    clock.now += 10
    assert await credentials.access() is access
    assert await credentials.access() is access
    assert len(caplog.records) == 1, "not with every request"
    assert SECRET not in caplog.text


async def test_a_401_renews_at_once_but_not_for_ever() -> None:
    clock, loads = Clock(), 0

    async def load() -> Access:
        nonlocal loads
        loads += 1
        return Access(server="https://x", tls=None, authorization=f"Bearer {loads}")

    credentials = Credentials(load, await load(), clock=clock)
    first = await credentials.access()
    second = await credentials.renew(first)
    assert second is not None
    assert second.authorization == "Bearer 2"
    assert await credentials.renew(first) is second, "somebody else's 401 has brought them"
    assert await credentials.renew(second) is None, "too soon"
    assert loads == 2
    clock.now += 10
    assert await credentials.renew(second) is not None


async def test_a_renewal_that_fails_is_no_failure_of_the_request(caplog: pytest.LogCaptureFixture) -> None:
    async def load() -> Access:
        raise ExternalError("not now")

    access = Access(server="https://x", tls=None, fresh_seconds=1.0)
    clock = Clock()
    credentials = Credentials(load, access, clock=clock)
    clock.now += 10
    assert await credentials.access() is access
    assert await credentials.renew(access) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_nothing_of_a_kubeconfig_shows_in_the_readers_text() -> None:
    loaded = kubeconfig.Loaded(server="https://x", authorization=SECRET, key=SECRET)
    assert SECRET not in repr(loaded)


def test_in_a_pod_the_kubernetes_package_is_not_loaded() -> None:
    modules = ", ".join(f"kybernate.kube.{name}" for name in ("cache", "controller", "election", "events"))
    code = f"import sys, {modules}; print('kubernetes' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
