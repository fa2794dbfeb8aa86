"""Numbers as people read them. None, a figure that could not be taken, is a dash."""

DASH = "–"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """A number of things: exact up to five digits, then with three digits and a prefix.

    >>> count(81194), count(25_557_032), count(4.09e9)
    ('81,194', '25.6 M', '4.09 G')
    """
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) < 1e5 else _prefixed(value, "")


def size(value: float | None) -> str:
    """Bytes, in powers of 1000.

    >>> size(812), size(325_568)
    ('812 B', '326 kB')
    """
    return DASH if value is None else _prefixed(value, "B")


def milliseconds(value: float | None) -> str:
    """A duration given in milliseconds.

    >>> milliseconds(0.0821), milliseconds(12.3456), milliseconds(2100)
    ('0.0821 ms', '12.3 ms', '2.10 s')
    """
    if value is None:
        return DASH
    return f"{_three_digits(value / 1000)} s" if value >= 1000 else f"{_three_digits(value)} ms"


def rate(value: float | None) -> str:
    """Samples per second.

    >>> rate(12187.5)
    '12.2 k/s'
    """
    return DASH if value is None else f"{_prefixed(value, '')}/s"


def percent(value: float | None) -> str:
    """A share in [0, 1].

    >>> percent(0.9722)
    '97.2 %'
    """
    return DASH if value is None else f"{100 * value:.1f} %"


def plain(value: float | None) -> str:
    """Any other number.

    >>> plain(0.08213), plain(0.4), plain(1234.5)
    ('0.0821', '0.400', '1,234')
    """
    return DASH if value is None else _three_digits(value)


def scientific(value: float | None) -> str:
    """A difference that may be small.

    >>> scientific(3.24e-7), scientific(0.0), scientific(0.31)
    ('3.2e-07', '0', '0.310')
    """
    if value is None:
        return DASH
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else _three_digits(value)


def _prefixed(value: float, unit: str) -> str:
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{_three_digits(value / factor)} {prefix}{unit}"
    return f"{_three_digits(value)} {unit}".rstrip()


def _three_digits(value: float) -> str:
    if abs(value) >= 99.95 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
