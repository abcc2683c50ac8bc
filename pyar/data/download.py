"""Public files and where they come from: mirrors in order, SHA-256 checked by pooch, a progress bar while they come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyar.data.dataset import DataError


@dataclass(frozen=True)
class RemoteFiles:
    """Files that several mirrors offer under the same names: {file name: SHA-256}."""

    mirrors: tuple[str, ...]
    sha256: dict[str, str]


MNIST = RemoteFiles(
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
)
FASHION_MNIST = RemoteFiles(
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    ),
    sha256={
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)
BINARIZED_MNIST = RemoteFiles(
    mirrors=("http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",),
    sha256={
        "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    },
)


def default_cache_dir() -> Path:
    """The user's cache folder for pyar, as the operating system names it. Raises `DataError` where there is none."""
    import pooch

    remedy = "there is no home directory for downloads; say --cache-dir, or by --data-dir where the files are"
    try:
        folder = Path(pooch.os_cache("pyar"))
    except RuntimeError as error:
        raise DataError(remedy) from error
    if not folder.is_absolute():  # older platformdirs leave "~" as it is
        raise DataError(remedy)
    return folder


def fetch(files: RemoteFiles, name: str, folder: Path, *, progress: bool = True, timeout: float = 30.0) -> Path:
    """The path of `name` in `folder`, downloaded if it is not there with the right checksum.

    Raises `DataError` with every mirror's failure and what to do by hand.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    failures = []
    for mirror in files.mirrors:
        try:
            downloader = pooch.HTTPDownloader(progressbar=progress, timeout=timeout)
            found = pooch.retrieve(
                mirror + name, known_hash=f"sha256:{files.sha256[name]}", fname=name, path=folder, downloader=downloader
            )
            return Path(found)
        except requests.ConnectionError:  # its text is a page of nested representations
            failures.append(f"  {mirror}{name}: no connection")
        except (OSError, ValueError) as error:  # requests' errors are OSErrors; a wrong checksum is a ValueError
            failures.append(f"  {mirror}{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise DataError(
        f"{name} could not be downloaded:\n"
        + "\n".join(failures)
        + f"\nFetch it by other means and put it into {folder}, "
        "or point --data-dir (or PYAR_DATA) at a folder that has it."
    )
