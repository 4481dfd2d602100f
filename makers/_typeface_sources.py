"""The typefaces of the data set `typefaces`: npm packages of Fontsource, by style, each read with its licence.

One typeface of a family only, and none that another one here was drawn from (IBM Plex Mono, but not iA Writer), so
that a split by typeface leaks nothing.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tether._files import read_json, write_json
from tether.errors import TetherError

LICENCES = ("OFL-1.1", "Apache-2.0")
VERSION = "5.3.0"
"""Of every package that is not written with another one."""

TYPEFACES = {
    style: tuple(names.split())
    for style, names in {
        "sans-serif": """
            abel actor alata almarai archivo-narrow asap atkinson-hyperlegible average-sans@5.2.8 basic belleza
            cantarell catamaran clear-sans didact-gothic dm-sans dosis familjen-grotesk figtree fjalla-one hind
            inclusive-sans inder jockey-one@5.2.7 josefin-sans jura karla lato league-gothic marcellus maven-pro
            orienta@5.2.8 oswald outfit philosopher play questrial quicksand rajdhani sen signika syne tenor-sans
            varela""",
        "serif": """
            abhaya-libre adamina@5.2.7 aleo alice arvo brawler bree-serif caladea cardo crimson-text domine esteban
            gentium-book-basic gfs-didot gloock halant headland-one hedvig-letters-serif im-fell-english inika
            inknut-antiqua instrument-serif italiana libre-baskerville libre-caslon-text lora lustria martel
            old-standard-tt ovo poly prata pt-serif quattrocento rokkitt rufina sanchez sorts-mill-goudy
            stix-two-text unna volkhov zilla-slab""",
        "monospace": """
            anonymous-pro azeret-mono b612-mono commit-mono courier-prime cousine dejavu-mono fira-mono
            fragment-mono geist-mono ibm-plex-mono inconsolata jetbrains-mono kode-mono lekton
            monaspace-krypton@5.2.5 overpass-mono red-hat-mono reddit-mono roboto-mono share-tech-mono
            sometype-mono space-mono special-elite spline-sans-mono victor-mono""",
        "handwriting": """
            amatic-sc annie-use-your-telescope architects-daughter bad-script caveat-brush cedarville-cursive
            covered-by-your-grace delicious-handrawn delius gloria-hallelujah gochi-hand handlee homemade-apple
            indie-flower kalam mansalva patrick-hand permanent-marker reenie-beanie rock-salt schoolbell
            shadows-into-light short-stack sue-ellen-francisco swanky-and-moo-moo the-girl-next-door""",
        "script": """
            alex-brush allura cookie corinthia courgette damion dancing-script ephesis grand-hotel great-vibes
            herr-von-muellerhoff italianno kaushan-script lobster marck-script montecarlo@5.2.8 mr-de-haviland
            oooh-baby pacifico parisienne pinyon-script rochester sacramento satisfy tangerine yellowtail""",
        "display": """
            alfa-slab-one audiowide bangers black-ops-one bowlby-one-sc bungee-shade cabin-sketch
            cinzel-decorative climate-crisis creepster ewert fredericka-the-great germania-one graduate
            iceberg@5.2.8 knewave luckiest-guy medievalsharp modak monofett monoton nosifer pixelify-sans poiret-one
            press-start-2p righteous saira-stencil-one uncial-antiqua unifrakturcook unifrakturmaguntia""",
    }.items()
}
"""Package names by style; "display" has ornament, shadows, stencils, pixels, uncials and blackletter."""


@dataclass(frozen=True)
class Typeface:
    """One typeface: its font file, and whom to thank for it."""

    name: str
    family: str
    style: str
    version: str
    licence: str
    attribution: str
    file: Path


def fetch(folder: Path, packages: Iterable[str]) -> None:
    """Install the packages with npm into `folder`, from the registry that npm is set up for.

    Raises:
        TetherError: there is no npm, or it fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise TetherError("The typefaces are npm packages, and there is no npm; install Node.js.")
    versions = dict(_name_and_version(package) for package in packages)
    write_json(
        folder / "package.json",
        {
            "private": True,
            "dependencies": {f"@fontsource/{name}": version for name, version in versions.items()},
        },
    )
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
        raise TetherError(f"npm could not install the typefaces into {folder}:\n{last}")


def read_typeface(folder: Path, package: str, style: str) -> Typeface:
    """A typeface of the packages that `fetch` installed into `folder`, upright and as near to regular as it comes.

    Raises:
        TetherError: it is not there, not in this version, without a font for Latin letters, or under a licence
            that is none of `LICENCES`.
    """
    name, version = _name_and_version(package)
    place = folder / "node_modules" / "@fontsource" / name
    if not (place / "package.json").is_file():
        raise TetherError(f"Expected the npm package @fontsource/{name} in {place}, found none.")
    found, about = read_json(place / "package.json")["version"], read_json(place / "metadata.json")
    if found != version:
        raise TetherError(f"{place} holds version {found} of @fontsource/{name}, expected {version}.")
    licence = about["license"] if isinstance(about["license"], dict) else {"type": about["license"]}
    if licence["type"] not in LICENCES:
        raise TetherError(
            f"The licence of @fontsource/{name} is {licence['type']!r}, expected {' or '.join(LICENCES)}."
        )
    weight = min(about["weights"], key=lambda weight: abs(weight - 400))
    file = place / "files" / f"{name}-latin-{weight}-normal.woff2"
    if not file.is_file():
        raise TetherError(f"@fontsource/{name} has no font {file.name}.")
    attribution = re.split(r"\s+\S+\.ttf: ", licence.get("attribution", ""))[0]  # the rest repeats it by file
    return Typeface(name, about["family"], style, version, licence["type"], attribution, file)


def _name_and_version(package: str) -> tuple[str, str]:
    name, _, version = package.partition("@")
    return name, version or VERSION
