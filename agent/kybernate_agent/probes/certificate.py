"""A certificate for probes that speak HTTPS: made by the agent for itself, kept in memory, gone with it.

A kubelet verifies no certificate of a probe (Kubernetes API core/v1, HTTPGetAction.scheme), so this one only has to be
there. Its key is on no disk: `ssl` reads files alone, and gets one that has no name.
"""

from __future__ import annotations

import datetime
import functools
import os
import ssl

_DAYS = 3650  # nobody verifies it, and no agent lives as long


@functools.cache
def server_context() -> ssl.SSLContext:
    """Made at the first call, in some 200 ms."""
    # Not at the top: most probes speak HTTP, and the library costs 15 MB.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kybernate: answer for a sleeping pod")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + certificate.public_bytes(encoding)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    handle = os.memfd_create("kybernate-probe-certificate", os.MFD_CLOEXEC)
    try:
        os.write(handle, pem)
        context.load_cert_chain(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)
    return context
