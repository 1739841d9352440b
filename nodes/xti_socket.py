"""The socket that XTIs travel on; its value is an `xti.XTI`."""

from ._api import io

XTIType = io.Custom("GUIDANCELAB_XTI")
