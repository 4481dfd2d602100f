"""List the sites of any model: each family of models says where its own are."""

from collections.abc import Iterator
from importlib import import_module

from torch import nn

from tether.errors import TetherError, near_misses
from tether.models.site import NORMS, POSITIONS, Position, Select, Site, choose

FAMILIES = {  # the package a class comes from, and the module of ours that knows its classes
    "open_clip": "tether.models.sites_open_clip",
    "transformers": "tether.models.sites_transformers",
    "timm": "tether.models.sites_timm",
    "torchvision": "tether.models.sites_torchvision",
}


def sites(module: nn.Module, select: Select | None = None, position: Position = "output") -> list[Site]:
    """The sites of a model that `select` asks for; by default those after attention and MLP of every block.

        sites(module)                                                        # R-Adapter: outputs of both
        sites(module, position="after")                                      # on the stream, after each of them
        sites(module, Select(kinds=("mlp",)), position="parallel")           # beside the MLP
        sites(module, Select(kinds=("block",), tower="image"), position="prompt")

    Call it on the ordinary model, before anything is attached. A model of no known family works with an
    explicit pattern: `sites(module, Select(pattern="blocks.*.mlp.fc2", kinds=("linear",)))`.

    Args:
        module: a model of open_clip, transformers, timm or torchvision, a part of one, or a module that
            contains one.
        select: which sites; None is `Select()`.
        position: where in a block, see `Site`: a method knows it, so it is no part of `select`.

    Returns:
        The sites, in the order of the model's modules. Their paths are relative to `module`.

    Raises:
        TetherError: nothing matches, more matches than was asked for, a tower's sites are not known, or the
            model has none at this position.
    """
    if position not in POSITIONS:
        raise TetherError(f"Unknown position {position!r}{near_misses(str(position), POSITIONS)}")
    select = select or Select()
    every = sorted(_known(module), key=lambda site: site.tower)
    known = [site for site in every if site.position == position]
    if every and not known:
        found = [name for name in POSITIONS if any(site.position == name for site in every)]
        raise TetherError(
            f"{type(module).__name__} has no site at position {position!r}; it has sites at {', '.join(found)}."
        )
    if position == "output" and select.pattern is not None and set(select.kinds) <= {"linear", "norm"}:
        covered = {(site.path, site.kind) for site in known}
        known += [site for site in _by_type(module) if (site.path, site.kind) not in covered]
    elif not known:
        outputs = "" if position == "output" else f" At position {position!r} it has none; outputs there are."
        raise TetherError(
            f"The sites of {type(module).__name__} are not known.{outputs} Name them by a pattern on module paths, "
            f"such as Select(pattern='blocks.*.mlp.fc2', kinds=('linear',))."
        )
    elif hasattr(module, "logit_scale"):
        for tower in ("image", "text"):
            if select.tower not in (None, tower) or any(site.tower == tower for site in known):
                continue
            if any(site.tower == tower for site in every):
                raise TetherError(
                    f"This model's {tower} tower has no site at position {position!r}. Choose the other tower: "
                    f"Select(tower={'image' if tower == 'text' else 'text'!r})."
                )
            raise TetherError(
                f"The sites of this model's {tower} tower are not known. Choose the other tower, or name "
                f"the sites by a pattern on module paths, with kinds=('linear',)."
            )
    return choose(known, select)


def _known(module: nn.Module) -> Iterator[Site]:
    for path, part in module.named_modules():
        packages = {cls.__module__.split(".")[0] for cls in type(part).__mro__}
        for package in packages & FAMILIES.keys():
            yield from import_module(FAMILIES[package]).find(part, f"{path}." if path else "")


def _by_type(module: nn.Module) -> Iterator[Site]:
    """Every linear and norm: for models of no known family, and for what lies outside known blocks."""
    fused = {
        f"{path}.out_proj" for path, part in module.named_modules() if isinstance(part, nn.MultiheadAttention)
    }
    for path, part in module.named_modules():
        tower = "text" if "text" in path.split(".")[0] else "image"
        depth = next((int(name) for name in path.split(".") if name.isdigit()), 0)
        if isinstance(part, nn.Linear) and path.lstrip(".") not in fused:
            yield Site(path, tower, depth, "linear", part.out_features, "BNC", 0, path, False)
        elif NORMS.search(type(part).__name__) and getattr(part, "weight", None) is not None:
            yield Site(path, tower, depth, "norm", part.weight.shape[0], "BNC", 0, None, False)
