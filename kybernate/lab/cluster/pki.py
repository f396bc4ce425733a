"""Certificates of a cluster: one authority, a certificate for each component, kubeconfigs. Made by openssl(1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kybernate.lab.process import run

_DAYS = "3650"
_CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


class Authority:
    """A certificate authority in a folder of its own, which only root may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.accounts_key = folder / "accounts.key"
        self._extensions = folder / "leaf.ext"
        """What Python >= 3.13 wants in a certificate, beside the key usage in the authority's (RFC 5280, 4.2.1)."""

    def create(self) -> None:
        """The authority's certificate, and the key that signs tokens of service accounts."""
        self.folder.mkdir(mode=0o700)
        key: list[str | Path] = ["-keyout", self.folder / "ca.key", "-out", self.certificate]
        usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        run(["openssl", "req", "-x509", *_CURVE, *key, "-days", _DAYS, "-subj", "/CN=lab", *usage])
        self._extensions.write_text("subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
        run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", self.accounts_key])

    def issue(self, name: str, subject: str, names: Sequence[str] = ()) -> None:
        """NAME.crt and NAME.key for `subject` (/O=group/CN=user); `names` are IP:... and DNS:... of a server."""
        more = ["-addext", f"subjectAltName={','.join(names)}"] if names else []
        request = run(["openssl", "req", "-new", *_CURVE, "-keyout", self.key(name), "-subj", subject, *more])
        authority: list[str | Path] = ["-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial"]
        sign: list[str | Path] = ["openssl", "x509", "-req", *authority]
        sign += ["-extfile", self._extensions, "-copy_extensions", "copy"]
        run([*sign, "-days", _DAYS, "-out", self.crt(name)], stdin=request.encode())

    def crt(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def kubeconfig(self, name: str, server: str) -> Path:
        """A kubeconfig with the certificate NAME.crt. It names files, so it lies in the same folder as they."""
        path = self.folder / f"{name}.conf"
        path.write_text(
            f"""apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {{server: "{server}", certificate-authority: "{self.certificate}"}}
users:
- name: {name}
  user: {{client-certificate: "{self.crt(name)}", client-key: "{self.key(name)}"}}
contexts:
- name: lab
  context: {{cluster: lab, user: {name}}}
current-context: lab
"""
        )
        path.chmod(0o600)
        return path
