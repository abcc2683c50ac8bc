"""The build backend: setuptools, with the torch that is already installed where there is one.

pip builds in an isolated environment whose `sys.path` hides the installed torch, and a plain `torch` requirement would
download another one, gigabytes of it. The interpreter is the same, though, so `sysconfig` still tells where its
packages are. Only where no torch lies there is it added to the build requirements.
"""

from __future__ import annotations

import importlib.util
import os
import site
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (a backend is a module with setuptools' hooks)

TORCH_REQUIREMENT = "torch>=2.10,<2.14"


def installed_torch_path() -> str | None:
    """The folder of installed packages that holds torch, or None."""
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    if sys.prefix == sys.base_prefix and site.ENABLE_USER_SITE is not None:
        folders.append(site.getusersitepackages())
    for folder in folders:
        if os.path.isfile(os.path.join(folder, "torch", "version.py")):
            return folder
    return None


def _requires(config_settings: dict | None, setuptools_hook) -> list[str]:
    requirements = setuptools_hook(config_settings)
    folder = installed_torch_path()
    if folder is None:
        print(f"pyar build: no torch is installed; building against a downloaded {TORCH_REQUIREMENT}")
        return [*requirements, TORCH_REQUIREMENT]
    print(f"pyar build: building against the torch installed in {folder}")
    return requirements


def get_requires_for_build_wheel(config_settings=None):
    return _requires(config_settings, build_meta.get_requires_for_build_wheel)


def get_requires_for_build_editable(config_settings=None):
    return _requires(config_settings, build_meta.get_requires_for_build_editable)


def _with_torch(build, *arguments):
    """Makes the installed torch importable (last, so that the isolated environment's packages win) and builds."""
    if importlib.util.find_spec("torch") is None:
        folder = installed_torch_path()
        if folder is not None:
            sys.path.append(folder)
    return build(*arguments)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return _with_torch(build_meta.build_wheel, wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    return _with_torch(build_meta.build_editable, wheel_directory, config_settings, metadata_directory)
