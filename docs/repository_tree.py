"""A hook of MkDocs (mkdocs.yml): the site has the folders of the repository, so that one link works in both.

MkDocs takes pages from `docs/` alone. Here each of them is moved to `docs/...` of the site, and README.md, the other
pages of the root and the figures are put beside that folder, where they lie on GitHub too.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
BESIDE = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE",
    "pretrained/README.md",
    "notebooks/*.ipynb",
    "figures/*.png",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Returns the files of the site at the places that they have in the repository."""

    def at(path: Path, inclusion: InclusionLevel = InclusionLevel.INCLUDED) -> File:
        place = path.relative_to(ROOT).as_posix()
        return File.generated(config, place, abs_src_path=str(path), inclusion=inclusion)

    docs = Path(config.docs_dir)
    moved = []
    for file in files:
        if file.abs_src_path and Path(file.abs_src_path).is_relative_to(docs):
            moved.append(at(Path(file.abs_src_path), file.inclusion))
        else:
            moved.append(file)  # of the theme
    beside = [at(path) for pattern in BESIDE for path in sorted(ROOT.glob(pattern))]
    return Files([*moved, *beside])
