"""The sockets that XTIs and photos to learn from travel on; their values are an `xti.XTI` and a
`xti_photos.Photos`.
"""

from .._api import io

XTIType = io.Custom("GUIDANCELAB_XTI")
PhotosType = io.Custom("GUIDANCELAB_XTI_PHOTOS")
