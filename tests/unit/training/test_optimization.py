"""Loss, moving average and optimizer against straightforward implementations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlcls.training.optimization import WeightAverage, asymmetric_loss, make_optimizer

Doubles = npt.NDArray[np.float64]


def loss_by_hand(logits: Doubles, targets: Doubles, weights_of: Doubles, clip: float = 0.05) -> Doubles:
    """The published formula; `weights_of` are the logits that the focal weights are taken from."""
    scores, weight_scores = (1 / (1 + np.exp(-values)) for values in (logits, weights_of))
    absent = -np.log(np.minimum(1 - scores + clip, 1)) * np.maximum(weight_scores - clip, 0) ** 4
    losses: Doubles = np.where(targets > 0, -np.log(scores), absent).sum(axis=1)
    return losses


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_its_gradient_which_spares_the_focal_weights(paddle: Any, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits, targets = generator.normal(0, 2.5, (5, 7)), (generator.random((5, 7)) < 0.4).astype(np.float64)
    tensor = paddle.to_tensor(logits.astype(np.float32), stop_gradient=False)
    losses = asymmetric_loss(tensor, paddle.to_tensor(targets.astype(np.float32)))
    np.testing.assert_allclose(losses.numpy(), loss_by_hand(logits, targets, logits), rtol=1e-4, atol=1e-5)

    losses.sum().backward()
    step = 1e-6
    expected, through_weights = np.zeros_like(logits), np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        moved = np.zeros_like(logits)
        moved[index] = step
        for sign in (1, -1):
            there = logits + sign * moved
            expected[index] += sign * loss_by_hand(there, targets, logits).sum() / (2 * step)
            through_weights[index] += sign * loss_by_hand(there, targets, there).sum() / (2 * step)
    np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - through_weights).max() > 0.1, "the test could not tell the two gradients apart"


def test_loss_of_easy_and_hopeless_labels(paddle: Any) -> None:
    logits = paddle.to_tensor(np.array([[-3.0, 40.0], [200.0, -200.0]], np.float32), stop_gradient=False)
    losses = asymmetric_loss(logits, paddle.to_tensor(np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)))
    easy, hopeless = losses.numpy()
    assert easy == 0  # an absent label below the clip, and a present one that is certain
    assert hopeless == pytest.approx(-np.log(0.05) * 0.95**4 - np.log(1e-8), rel=1e-4)
    losses.sum().backward()
    assert np.isfinite(logits.grad.numpy()).all()


def test_average_of_weights_and_statistics(paddle: Any) -> None:
    network = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    average = WeightAverage(network, 0.5)
    expected = {name: tensor.numpy().astype(np.float64) for name, tensor in network.state_dict().items()}
    for step in range(12):
        network.train()
        network(paddle.randn([8, 3]))
        for parameter in network.parameters():
            parameter.set_value(parameter + 0.1 * (step + 1))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.numpy()
    assert {"1._mean", "1._variance"} < set(expected)
    for name, tensor in average.network.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert not average.network.training
    assert network.training


def test_one_dimensional_parameters_do_not_decay(paddle: Any) -> None:
    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3), paddle.nn.BatchNorm2D(4), paddle.nn.Linear(2, 2))
    network[2].weight.stop_gradient = True
    optimizer = make_optimizer(network, 0.5)
    optimizer.set_lr(0.1)
    before = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    for parameter in network.parameters():
        if not parameter.stop_gradient:
            parameter.grad = paddle.zeros_like(parameter)  # so that nothing but the decay moves a weight
    optimizer.step()
    for name, tensor in network.state_dict().items():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1
        np.testing.assert_allclose(tensor.numpy(), before[name] * factor, rtol=1e-6, err_msg=name)
