"""Data sets for work on adversarial robustness, in the manner of :mod:`sklearn.datasets`.

* ``load_*`` functions read data that is already on the machine: scikit-learn's digits as images
  (:func:`load_digits_images`), or a folder or tar file of images, one folder per class
  (:func:`load_image_folder`).
* ``fetch_*`` functions read the standard benchmarks of the field (:func:`fetch_mnist`,
  :func:`fetch_cifar10`, :func:`fetch_cifar100`) and download them where they are missing.
  :func:`get_data_home` says where they are kept.
* ``make_*`` functions draw synthetic problems whose robustness is understood:
  :func:`make_striped_images`, :func:`make_concentric_spheres`, :func:`make_robust_nonrobust` and
  :func:`make_three_clusters`; :func:`make_loans` draws a table of numbers and strings.

Images are float32 arrays of shape ``(n_samples, n_channels, height, width)`` with values in
[0, 1], so the bounds of the input domain are the same for every image data set here.
"""

from .._shared import export_all as _export_all
from ._base import get_data_home as get_data_home
from ._digits import load_digits_images as load_digits_images
from ._fetch import fetch_cifar10 as fetch_cifar10
from ._fetch import fetch_cifar100 as fetch_cifar100
from ._fetch import fetch_mnist as fetch_mnist
from ._generators import make_concentric_spheres as make_concentric_spheres
from ._generators import make_loans as make_loans
from ._generators import make_robust_nonrobust as make_robust_nonrobust
from ._generators import make_striped_images as make_striped_images
from ._generators import make_three_clusters as make_three_clusters
from ._image_folder import load_image_folder as load_image_folder

_export_all(globals())
