"""Sizes as people read them. Apart from `kybernate.api`, which a command line would wait for."""

from __future__ import annotations


def of_bytes(number: int) -> str:
    """The quantity that people read: `1.2Gi`, `93Gi`. Rounded."""
    amount, units = float(number), ["", "Ki", "Mi", "Gi", "Ti", "Pi"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    text = f"{amount:.1f}" if amount < 10 and units[0] else f"{amount:.0f}"
    return text.removesuffix(".0") + units[0]
