"""The lab's certificates: also the strictest client takes them."""

from __future__ import annotations

from pathlib import Path

from kybernate.lab.cluster.pki import Authority
from kybernate.lab.process import run


def test_certificates_are_complete_in_form(tmp_path: Path) -> None:
    """Python 3.13 verifies as `openssl verify -x509_strict` does."""
    authority = Authority(tmp_path / "pki")
    authority.create()
    authority.issue("server", "/CN=server", ["DNS:server", "IP:10.0.0.1"])
    authority.issue("client", "/O=group/CN=client")
    for name in ("server", "client"):
        said = run(["openssl", "verify", "-x509_strict", "-CAfile", authority.certificate, authority.crt(name)])
        assert said.strip().endswith(": OK")
    text = run(["openssl", "x509", "-in", authority.crt("server"), "-noout", "-ext", "subjectAltName"])
    assert "DNS:server, IP Address:10.0.0.1" in text
