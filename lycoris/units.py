"""Bytes and seconds as a person reads and writes them, the same wherever they are said."""

from __future__ import annotations

import re

from .errors import ConfigError

SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB")
WRITTEN = {"B": 1, "K": 2**10, "KIB": 2**10, "KB": 10**3, "M": 2**20, "MIB": 2**20,
           "MB": 10**6, "G": 2**30, "GIB": 2**30, "GB": 10**9}


def size(count: float) -> str:
    """ "38.5 KiB", "121.8 MiB", "2.4 GiB": one digit, in the unit of which there are fewer than
    1,024."""
    value, power = abs(float(count)), 0
    while round(value, 1) >= 1024 and power < len(SIZES) - 1:
        value, power = value / 1024, power + 1
    sign = "−" if count < 0 else ""
    return f"{sign}{value:,.{1 if power else 0}f} {SIZES[power]}"


def duration(seconds: float) -> str:
    """ "5 d 13 h", "2 h 05 min", "3 min 20 s", "12 s"."""
    whole = round(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def parsed(text: str) -> int:
    """Bytes of "40MiB", "40M" (the same), "40MB" or "500000B"; ConfigError for anything else. A
    number alone is refused: 40 bytes is never what was meant."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match and not match[2]:
        raise ConfigError({"": f"{text.strip()} of what? A size has a unit"},
                          f"Write e.g. {text.strip()}MiB.")
    if not match or match[2].upper() not in WRITTEN:
        raise ConfigError({"": f"{text!r} is no size"}, "Write e.g. 40MiB, 2.5MB or 500000B.")
    return int(float(match[1]) * WRITTEN[match[2].upper()])
