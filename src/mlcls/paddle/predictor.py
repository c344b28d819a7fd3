"""The original graph of a PaddleX model on Paddle Inference, with PaddleX's own settings for a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mlcls.errors import ModelFormatError
from mlcls.paddle.model import PaddleXModel
from mlcls.paddle.runtime import import_paddle


class PaddlePredictor:
    """A loaded graph, run with oneDNN, which is three to eight times as fast, or without it if its kernels fail.

    Those of Paddle 3.3 fail on some graphs of the older format, at the first image.
    """

    def __init__(self, model: PaddleXModel, threads: int) -> None:
        """Load the graph, for so many threads of the math library.

        Raises:
            ModelFormatError: Paddle cannot load the graph.
            MissingExtraError: paddlepaddle is not installed.
        """
        import_paddle("convert")
        self._model, self._threads = model, threads
        try:
            self._predictor, self._onednn = self._open(onednn=True), True
        except Exception:  # paddle's C++ exceptions have no common Python type
            self._give_up_onednn()

    def run(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the graph's output (N, num_labels) float32 for normalized images (N, 3, H, W) float32.

        Raises:
            ModelFormatError: Paddle cannot run the graph.
        """
        predictor = self._predictor
        try:
            predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(image)
            predictor.run()
            output = predictor.get_output_handle(predictor.get_output_names()[0])
            scores: npt.NDArray[np.float32] = output.copy_to_cpu()
            return scores
        except Exception as error:  # see above
            if not self._onednn:
                raise ModelFormatError(f"Paddle cannot run the graph ({_last_line(error)}).") from error
        self._give_up_onednn()
        return self.run(image)

    def _give_up_onednn(self) -> None:
        try:
            self._predictor, self._onednn = self._open(onednn=False), False
        except Exception as error:  # see above
            reason = _last_line(error)
            raise ModelFormatError(f"{self._model.graph}: Paddle cannot load the graph ({reason}).") from error

    def _open(self, *, onednn: bool) -> Any:
        from paddle import inference

        config = inference.Config(str(self._model.graph), str(self._model.parameters))
        config.disable_gpu()
        config.disable_glog_info()
        if onednn:
            config.enable_mkldnn()  # oneDNN by its earlier name
        else:
            config.disable_mkldnn()
        config.set_cpu_math_library_num_threads(self._threads)
        config.enable_new_ir(True)
        config.enable_new_executor()
        config.set_optimization_level(3)
        config.enable_memory_optim()
        return inference.create_predictor(config)


def _last_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[-1] if lines else type(error).__name__
