"""What all displays need of matplotlib."""

from __future__ import annotations


def pyplot(caller):
    """Import matplotlib, which is optional, as late as possible."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{caller} requires matplotlib. Install it with `pip install matplotlib`, or "
            "`pip install robustsk[plot]`."
        ) from error
    return plt
