"""Regularizers of a recipe: terms that are added to the main objective, whatever adapter is trained.

`make_terms(configs, context)` once before training; `terms(step_input)` in every step gives the weighted terms
by name, to be added to the loss and logged.

| method | objective | a step costs besides | once before training |
|---|---|---|---|
| `l2_sp_penalty` | any | no forward | a copy of the weights trained |
| `m2_mix`, `v_mix`, `l_mix`, `vl_mix`, `m3_mix` | contrastive | no forward | nothing |
| `car_ft` | any | the pre-trained picture tower once (R) | the contexts |
| `lipsum_ft` | any | R; 80 texts by the pre-trained text tower | nothing |
| `star_ft` | any | R; contrastive: the batch's prompts once more, with gradient | classes × backgrounds |
| `function_space` | any | pictures: pre-trained once, model twice with gradient | class prompts |
| `carot` | contrastive | the teacher on pictures and prompts | a copy of what is trained |

R is computed once a step for all that need it. Where the model's own weights move, one copy of them is kept for
R; adapters are switched off for it instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tether.config import method_of
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.tasks.terms.reference import Reference as Reference
from tether.tasks.terms.step import Shared, Step, StepInput, TermContext


class Terms:
    """The terms of a run. Made by `make_terms`."""

    def __init__(self, terms: Mapping[str, tuple[float, Any]], shared: Shared) -> None:
        self._terms, self._shared = dict(terms), shared

    def __len__(self) -> int:
        return len(self._terms)

    @property
    def separable(self) -> bool:
        """Whether the terms of a batch are the mean of those of its pieces: none looks at several examples together."""
        return all(term.separable for _, term in self._terms.values())

    def __call__(self, given: StepInput) -> dict[str, Float[Tensor, ""]]:
        """The weighted terms of a step by name, with their gradients."""
        step = Step(given, self._shared)
        return {name: weight * term(step) for name, (weight, term) in self._terms.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """What has to go on with a continued run, by flat names ("carot.…")."""
        return {
            f"{method}.{name}": tensor
            for method, term in self._stateful().items()
            for name, tensor in term.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            TetherError: it is not one of these terms.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise TetherError(
                f"The state is not one of these terms: missing {missing[:6]}, unexpected {unexpected[:6]}."
            )
        for method, term in self._stateful().items():
            prefix = f"{method}."
            own_part = {path[len(prefix) :]: t for path, t in state.items() if path.startswith(prefix)}
            term.load_state_dict(own_part)

    def _stateful(self) -> dict[str, Any]:
        return {name: term for name, (_, term) in self._terms.items() if hasattr(term, "state_dict")}


def make_terms(configs: Sequence[RegularizerConfig], context: TermContext) -> Terms:
    """Prepare the terms of a run, right after `attach` and before a checkpoint is loaded.

    A term of weight 0 is left out and costs nothing.

    Raises:
        TetherError: a method twice, or one that makes no sense with this objective, adapter or model.
    """
    shared, terms = Shared(context), {}
    for config in configs:
        name = method_of(type(config))
        if name in terms:
            raise TetherError(f"The regularizer {name} is given twice; give it once.")
        if config.weight == 0:
            continue
        terms[name] = (config.weight, config.term(shared))
    return Terms(terms, shared)
