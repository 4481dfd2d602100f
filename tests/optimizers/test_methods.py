"""What is special to each method, and what each of its options changes."""

import copy

import pytest
import torch

from tether.errors import TetherError
from tether.optimizers import FTP, L2SP, MARSSP, SPD, TPGM, DiGraP

START = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
G1 = torch.tensor([[0.1, -0.2], [0.3, 0.05]], dtype=torch.float64)
G2 = torch.tensor([[-0.02, 0.03], [-0.05, -0.01]], dtype=torch.float64)


def run(optimizer_class, gradients, *, start=START, **options):
    param = torch.nn.Parameter(start.clone())
    optimizer = optimizer_class([param], **{"lr": 0.1, **options})
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return param.detach(), optimizer.state[param]


class TestFTP:
    def test_k_scales_only_what_shrinks_the_radius(self):
        growing = [run(FTP, [G1] * 5, k=k)[1]["radius"] for k in (0.0, 1.0)]
        assert torch.equal(*growing)  # nothing shrinks under a constant gradient
        turning = [G1] * 5 + [-G1] * 4
        shrinking = [run(FTP, turning, k=k)[1]["radius"].item() for k in (0.0, 0.5, 1.0)]
        assert shrinking == sorted(shrinking, reverse=True)
        assert shrinking[0] > shrinking[2]

    def test_bias_correction(self):
        """The published exponent makes the first move 0.744 of the learning rate; the exact one all of it."""
        published = run(FTP, [G1] * 2)[1]["radius"].item()
        exact = run(FTP, [G1] * 2, bias_correction="exact")[1]["radius"].item()
        assert published == pytest.approx(1e-8 + 0.00744137, abs=1e-8)
        assert exact == pytest.approx(1e-8 + 0.01, abs=1e-7)

    def test_a_start_away_from_the_anchor(self):
        """By default it is kept; the published first radius throws it away."""
        anchor = [torch.zeros_like(START)]
        param = torch.nn.Parameter(START.clone())

        def first_step(**options):
            param.data.copy_(START)
            param.grad = G1.clone()
            optimizer = FTP([param], lr=1e-3, anchors={param: anchor[0]}, **options)
            optimizer.step()
            return param.detach().clone()

        assert (first_step() - START).abs().max() < 2e-3
        assert first_step(first_radius="published").abs().max() < 1e-8

    def test_rows_stay_within_the_radius(self):
        weights, state = run(FTP, [G1] * 6)
        distance = (weights - START).abs().sum(1)
        assert torch.all(distance <= state["radius"] + 1e-12)
        assert distance.max() == pytest.approx(state["radius"].item(), rel=1e-6)

    def test_a_vector_is_one_row_and_a_kernel_is_rows_of_its_first_dimension(self):
        whole = run(FTP, [G1.flatten()] * 5, start=START.flatten())[0]
        one_row = run(FTP, [G1.reshape(1, 4)] * 5, start=START.reshape(1, 4))[0]
        assert torch.allclose(whole, one_row.flatten(), rtol=0, atol=1e-14)
        kernel = run(FTP, [G1.reshape(2, 1, 2, 1)] * 5, start=START.reshape(2, 1, 2, 1))[0]
        matrix = run(FTP, [G1] * 5)[0]
        assert torch.allclose(kernel.reshape(2, 2), matrix, rtol=0, atol=1e-14)
        assert not torch.allclose(whole.reshape(2, 2), matrix, atol=1e-4)


class TestSPD:
    def test_it_fires_only_where_descent_leads_back_and_the_step_leads_away(self):
        away_again = run(SPD, [G1, G1, G1])[0]  # gradient and step both lead away
        assert torch.equal(away_again, run(SPD, [G1, G1, G1], strength=0)[0])
        back = run(SPD, [G1, G1, G2])[0]  # the gradient turned, the momentum did not
        free = run(SPD, [G1, G1, G2], strength=0)[0]
        before = run(SPD, [G1, G1])[0]
        assert (free - START).norm() > (before - START).norm() + 0.1
        assert (back - START).norm() == pytest.approx((before - START).norm().item(), abs=1e-12)

    def test_more_strength_shrinks_the_radius(self):
        radius = [(run(SPD, [G1, G1, G2], strength=s)[0] - START).norm() for s in (0, 0.5, 1, 2)]
        assert radius == sorted(radius, reverse=True)

    def test_the_first_step_is_free(self):
        assert torch.equal(run(SPD, [G1], strength=100.0)[0], run(SPD, [G1], strength=0)[0])

    def test_strength_times_learning_rate(self):
        """As published the learning rate does not weaken it; with `times_lr` it does."""
        published = run(SPD, [G1, G1, G2], strength=1.0)[0]
        scaled = run(SPD, [G1, G1, G2], strength=1.0, times_lr=True)[0]
        assert torch.allclose(scaled, run(SPD, [G1, G1, G2], strength=0.1)[0], rtol=0, atol=1e-12)
        assert not torch.allclose(scaled, published, atol=1e-2)

    def test_weight_decay_leaves_anchored_tensors_alone(self):
        assert torch.equal(run(SPD, [G1, G2], weight_decay=0.5)[0], run(SPD, [G1, G2])[0])


class TestDiGraP:
    TURNS = (G1, G1, G2, G2, G1, G2, G1)

    def test_a_full_share_removes_what_leads_away(self):
        """At ω = 1, with SGD, a step in conflict keeps the component along the displacement as it is."""
        param = torch.nn.Parameter(START.clone())
        optimizer = DiGraP([param], lr=0.1, base="sgd", anchors="zero", mu=1.0)
        param.grad = -START.clone()
        optimizer.step()  # ω is 0 at the first step, whatever the gradient
        assert torch.allclose(param, 1.1 * START)
        optimizer.state[param]["omega"].fill_(1.0)
        before = param.detach().clone()
        away = -before + torch.tensor(
            [[2.0, 1.0], [0.0, 0.0]], dtype=torch.float64
        )  # the rest is orthogonal to it
        assert (away * before).sum() < 0
        param.grad = away
        optimizer.param_groups[0]["mu"] = 0.0
        optimizer.step()
        moved = param - before
        assert (moved * before).sum().abs() < 1e-12
        assert moved.norm() > 0.1

    @pytest.mark.parametrize(
        "option",
        [{"condition": "agreement"}, {"normalization": "tensor"}, {"bias_correction": "exact"}],
    )
    def test_every_reading_differs_from_the_published_code(self, option):
        published, state = run(DiGraP, self.TURNS, mu=0.5)
        other, _ = run(DiGraP, self.TURNS, mu=0.5, **option)
        assert state["omega"] > 0
        assert not torch.allclose(published, other, atol=1e-4)

    def test_the_condition_decides_when_the_gradient_is_changed(self):
        """Where descent leads to the anchor only "agreement" changes it, elsewhere only "conflict"."""
        for gradient, changing in ((START, "agreement"), (-START, "conflict")):
            for condition in ("conflict", "agreement"):
                param = torch.nn.Parameter(START.clone())
                optimizer = DiGraP([param], 0.1, base="sgd", anchors="zero", mu=0.0, condition=condition)
                optimizer.state[param]["omega"].fill_(0.5)
                param.grad = gradient.clone()
                optimizer.step()
                plain = START - 0.1 * gradient
                assert torch.allclose(param, plain, rtol=0, atol=1e-12) == (condition != changing)


class TestL2SP:
    def test_the_pull_is_the_gradient_of_the_penalty(self):
        param, plain = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
        anchor = START + 0.3
        optimizer = L2SP([param], 0.1, alpha=0.7, base="sgd", momentum=0.9, anchors={param: anchor})
        reference = torch.optim.SGD([plain], 0.1, momentum=0.9)
        for _ in range(4):
            param.grad = G1.clone()
            optimizer.step()
            reference.zero_grad()
            ((plain * G1).sum() + 0.7 / 2 * (plain - anchor).square().sum()).backward()
            reference.step()
        assert torch.allclose(param, plain, rtol=0, atol=1e-12)

    def test_decoupled_differs_with_adam(self):
        coupled, decoupled = (run(L2SP, [G1] * 4, alpha=1.0, decoupled=d)[0] for d in (False, True))
        assert not torch.allclose(coupled, decoupled, atol=1e-3)

    def test_a_zero_anchor_is_weight_decay(self):
        param, plain = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
        optimizer = L2SP([param], 0.1, alpha=0.2, decoupled=True, anchors="zero")
        reference = torch.optim.AdamW([plain], 0.1, weight_decay=0.2)
        for gradient in (G1, G2, G1):
            param.grad, plain.grad = gradient.clone(), gradient.clone()
            optimizer.step()
            reference.step()
        assert torch.allclose(param, plain, rtol=0, atol=1e-12)


class TestMARSSP:
    def test_the_pull_is_the_gradient_of_the_penalty(self):
        param, plain = torch.nn.Parameter(START.clone()), torch.nn.Parameter(START.clone())
        anchor = START + torch.tensor([[0.1, -0.2], [0.5, 0.3]], dtype=torch.float64)
        optimizer = MARSSP([param], 0.1, strength=0.7, base="sgd", anchors={param: anchor})
        reference = torch.optim.SGD([plain], 0.1)
        for _ in range(4):
            param.grad = G1.clone()
            optimizer.step()
            reference.zero_grad()
            ((plain * G1).sum() + 0.7 * (plain - anchor).abs().sum(1).max()).backward()
            reference.step()
        assert torch.allclose(param, plain, rtol=0, atol=1e-12)

    def test_no_row_leaves_the_radius(self):
        weights = run(MARSSP, [G1] * 10, radius=0.3)[0]
        distance = (weights - START).abs().sum(1)
        assert torch.all(distance <= 0.3 + 1e-12)
        assert distance.max() == pytest.approx(0.3)
        assert torch.equal(run(MARSSP, [G1] * 3, radius=0.0)[0], START)


class TestTPGM:
    def setup_method(self):
        self.param = torch.nn.Parameter(START.clone())
        self.optimizer = TPGM([("weight", self.param)], lr=0.1)
        for _ in range(3):
            self.param.grad = G1.clone()
            self.optimizer.step()

    def test_the_step_is_the_plain_one(self):
        plain = torch.nn.Parameter(START.clone())
        reference = torch.optim.AdamW([plain], 0.1, weight_decay=0.0, fused=True)
        for _ in range(3):
            plain.grad = G1.clone()
            reference.step()
        assert torch.equal(self.param, plain)

    def test_the_first_projection_halves_the_nearest_row(self):
        rows = (self.param.detach() - START).abs().sum(1)
        self.optimizer.project()
        distance = (self.param.detach() - START).abs().sum(1)
        assert torch.allclose(distance, rows.min() / 2, rtol=1e-6)

    def test_held_out_data_decides_how_far(self):
        """Weights that are right for it get room, wrong ones are drawn back."""
        far = self.param.detach().clone()
        self.optimizer.radius_step(lambda: (self.param - far).square().sum(), iterations=200)
        right = (self.param.detach() - START).norm()
        self.setup_method()
        self.optimizer.radius_step(lambda: (self.param - START).square().sum(), iterations=200)
        wrong = (self.param.detach() - START).norm()
        assert right > 0.9 * (far - START).norm()
        assert wrong < 0.01 * (far - START).norm()

    def test_only_the_radius_is_learned_and_gradients_stay(self):
        other = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.optimizer.add_param_group({"params": [("head", other)], "excluded": True})
        self.param.grad, other.grad = G1.clone(), None
        seen = []

        def held_out():
            seen.append(self.param.detach().clone())
            return (self.param.sum() * other.sum()).square()

        before = self.param.detach().clone()
        loss = self.optimizer.radius_step(held_out, iterations=3)
        assert torch.equal(self.param.grad, G1)
        assert other.grad is None
        assert torch.equal(other, torch.ones(2, dtype=torch.float64))
        assert len(seen) == 3
        assert not any(
            torch.equal(weights, before) for weights in seen
        )  # the loss was that of projected weights
        assert not torch.equal(seen[0], seen[1])  # and the radius moved between them
        assert not loss.requires_grad

    def test_a_failing_loss_leaves_everything_as_it_was(self):
        before, state = self.param.detach().clone(), copy.deepcopy(self.optimizer.state[self.param])
        self.param.grad = G1.clone()

        def failing():
            raise RuntimeError("no data")

        with pytest.raises(RuntimeError, match="no data"):
            self.optimizer.radius_step(failing)
        assert torch.equal(self.param, before)
        for name, value in state.items():
            assert torch.equal(self.optimizer.state[self.param][name], value), name
        assert torch.equal(self.param.grad, G1)

    @pytest.mark.parametrize(
        ("factor", "offset"), [(1.0, torch.nan), (torch.nan, 0.0), (torch.inf, 0.0), (1.0, torch.inf)]
    )
    @pytest.mark.parametrize("good", [0, 2])
    def test_a_held_out_loss_that_is_no_number_changes_nothing(self, factor, offset, good):
        """Also where only the loss or only its gradient is not finite, and after iterations that were fine."""
        self.optimizer.radius_step(lambda: self.param.square().sum())
        before, state = self.param.detach().clone(), copy.deepcopy(self.optimizer.state[self.param])
        self.param.grad = G1.clone()
        calls = []

        def held_out():
            calls.append(1)
            wrong = len(calls) > good
            return self.param.square().sum() * (factor if wrong else 1.0) + (offset if wrong else 0.0)

        with pytest.raises(TetherError, match=r"not finite \(loss (nan|inf)\), so no radius was moved"):
            self.optimizer.radius_step(held_out, iterations=5)
        assert len(calls) == good + 1
        assert torch.equal(self.param, before)
        assert torch.equal(self.param.grad, G1)
        for name, value in state.items():
            assert torch.equal(self.optimizer.state[self.param][name], value), name
        self.optimizer.radius_step(lambda: self.param.square().sum())
        assert self.param.isfinite().all()

    def test_misuse_is_refused(self):
        with pytest.raises(TetherError, match="iterations must be at least 1, found 0"):
            self.optimizer.radius_step(lambda: self.param.sum(), iterations=0)
        elsewhere = torch.zeros(1, requires_grad=True)
        with pytest.raises(TetherError, match="no anchored parameter"):
            self.optimizer.radius_step(lambda: elsewhere.sum())

    def test_norms_differ(self):
        def projected(norm):
            param = torch.nn.Parameter(START.clone())
            optimizer = TPGM([param], lr=0.1, norm=norm, base="sgd")
            param.grad = G1.clone()
            optimizer.step()
            optimizer.project()
            return param.detach() - START

        whole = projected("l2")
        assert torch.allclose(whole, -0.1 * G1 / 2, rtol=1e-5, atol=0)  # one ratio for all rows
        assert not torch.allclose(projected("mars"), whole, rtol=1e-2, atol=0)


@pytest.mark.parametrize("norm", ["mars", "l2"])
def test_a_tensor_without_gradient_at_first_gets_its_radius_when_it_moves(norm):
    """As R-Adapter's scale, whose gradient is zero as long as its matrix is."""
    param = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
    optimizer = TPGM([("w", param)], lr=0.1, norm=norm)
    for gradient in (0.0, 1.0):
        param.grad = torch.full_like(param, gradient)
        optimizer.step()
        optimizer.radius_step(lambda: (param - 2).square().sum())
        if not gradient:
            assert torch.equal(param, torch.ones_like(param)) and optimizer.state[param]["radius"] < 0
    moved = (param - 1).abs().sum(1) if norm == "mars" else (param - 1).norm()
    assert optimizer.state[param]["radius"] > 1e-3 and (moved > 1e-3).all()
