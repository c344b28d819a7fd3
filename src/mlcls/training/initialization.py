"""Make the scores of a freshly initialized network depend on its input.

A fresh network all but ignores the picture: over real photos its scores differ by less than 5e-5, so that a comparison
of two runtimes passes whatever they compute. The cure is data-dependent initialization (Mishkin and Matas, "All you
need is a good init", ICLR 2016): batch-norm statistics are taken from real photos, and the linear layers of the head
are rescaled, feature by feature, to unit variance over those photos.

A deep network of fresh batch-norm and ReLU layers also amplifies the smallest perturbation, including rounding, by a
factor of 150 (measured on ResNet50_ML and PP-LCNet_x1_0_ML), so that two runtimes differ by more than 1e-4. A bias of
2 in each batch norm keeps most inputs of a ReLU in its linear part and reduces the factor to less than 30.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.errors import ConversionError
from mlcls.model.metrics import smallest_spread
from mlcls.model.postprocess import apply_sigmoid

if TYPE_CHECKING:
    import paddle

# Distribution of the logits of each label over the photos: about one label in six is above 0 (score 0.5).
LOGIT_MEAN: Final = -1.0
LOGIT_STD: Final = 1.0

# Bias of a fresh network's batch norms.
NORM_BIAS: Final = 2.0

# Least difference of some label's scores between any two photos.
MIN_SCORE_SPREAD: Final = 0.05


def make_input_sensitive(network: paddle.nn.Layer, inputs: npt.NDArray[np.float32]) -> None:
    """Rescale a fresh network of `build_network` in place so that its scores depend on the picture.

    The inputs are normalized real photos, (N, 3, H, W) float32, all different, N at least 4.

    Raises:
        ConversionError: All scores of some two photos still differ by less than `MIN_SCORE_SPREAD`.
    """
    import paddle

    (decoder,) = (layer for layer in network.sublayers() if type(layer).__name__ == "MLDecoder")
    features = _decoder_input(network, decoder, paddle.to_tensor(inputs))

    def run_head() -> Any:
        with paddle.no_grad():
            return decoder(features)

    layer = decoder.decoder.layers[0]
    _normalize_output(decoder.input_proj, run_head, axis=1)
    _normalize_output(layer.cross_attn.out_proj, run_head, axis=2)
    _normalize_output(layer.linear2, run_head, axis=2)
    _normalize_output(decoder.group_conv, run_head, axis=1, mean=LOGIT_MEAN, std=LOGIT_STD)

    spread = smallest_spread(apply_sigmoid(run_head().numpy()))
    if spread < MIN_SCORE_SPREAD:
        raise ConversionError(
            f"Expected the scores of any two photos to differ by at least {MIN_SCORE_SPREAD}, got {spread:.4f}; use "
            f"other photos (--photos) or another seed."
        )


def _decoder_input(network: paddle.nn.Layer, decoder: Any, inputs: paddle.Tensor) -> paddle.Tensor:
    """Run the backbone once, set its batch-norm statistics on the way, and return the decoder's input."""
    import paddle

    captured: list[paddle.Tensor] = []
    hook = decoder.register_forward_pre_hook(lambda _layer, args: captured.append(args[0]))
    for norm in network.sublayers():
        if hasattr(norm, "_momentum") and hasattr(norm, "_variance"):
            norm.bias.set_value(np.full(norm.bias.shape, NORM_BIAS, np.float32))
            norm._momentum = 0.0  # the statistics become those of this one batch
            norm.train()
    with paddle.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # paddle warns that training statistics are tracked, which is intended
        network(inputs)
    hook.remove()
    network.eval()
    return captured[-1]


def _normalize_output(layer: Any, run: Callable[[], Any], axis: int, mean: float = 0.0, std: float = 1.0) -> None:
    """Give each feature of a linear or convolution layer's output the wanted mean and standard deviation."""
    outputs: list[npt.NDArray[np.float32]] = []
    hook = layer.register_forward_post_hook(lambda _layer, _args, output: outputs.append(output.numpy()))
    run()
    hook.remove()
    values = np.moveaxis(outputs[0], axis, -1).reshape(-1, outputs[0].shape[axis])
    spread = values.std(axis=0)
    # the floor keeps the rounding of a feature that varies little over these few photos from being amplified
    gain = (std / np.maximum(spread, 0.5 * np.median(spread))).astype(np.float32)
    weight = layer.weight.numpy()
    feature_first = type(layer).__name__.startswith("Conv")  # Linear keeps its output features last
    layer.weight.set_value(weight * (gain.reshape(-1, 1, 1, 1) if feature_first else gain))
    layer.bias.set_value((layer.bias.numpy() - values.mean(axis=0)) * gain + np.float32(mean))
