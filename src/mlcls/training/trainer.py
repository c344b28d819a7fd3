"""The training loop: steps, evaluations, checkpoints.

Everything random in a step is drawn from generators that depend only on the seed and the step; paddle's own is seeded
before each step. A resumed run therefore ends with the weights of an uninterrupted one (bit for bit on a CPU with the
same number of threads).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from mlcls.dataset.annotations import ImageSet
from mlcls.errors import DatasetError, TrainingError, TrainingInterruptedError
from mlcls.model.metrics import mean_average_precision
from mlcls.training.augmentation import augment
from mlcls.training.checkpoint import Checkpoint, write_checkpoint
from mlcls.training.data import TrainingData, epoch_batches, read_batches, sequential_batches
from mlcls.training.optimization import WeightAverage, asymmetric_loss, cosine_rate, make_optimizer
from mlcls.training.processes import ProcessGroup, StopRequest
from mlcls.training.run_folder import EvaluationRow, Progress, RunFolder
from mlcls.training.settings import Device, TrainSettings

if TYPE_CHECKING:
    import paddle
    from tqdm import tqdm

# Time between checkpoints within an epoch, so that a long epoch is not lost.
CHECKPOINT_INTERVAL_S: Final = 900.0
# If no score differs more than this between images, the network no longer tells them apart.
_COLLAPSED: Final = 1e-4
# PaddleClas's `scale_loss`.
_LOSS_SCALE: Final = 128.0


class Trainer:
    """One process's part of a training; use it within one `paddle.utils.unique_name.guard`."""

    def __init__(
        self,
        settings: TrainSettings,
        data: TrainingData,
        network: paddle.nn.Layer,
        folder: RunFolder,
        stop: StopRequest,
        group: ProcessGroup,
    ) -> None:
        """Prepare the first step; the network has the weights to start from."""
        import paddle

        self._settings, self._data, self._network = settings, data, network
        self._folder, self._stop, self._group = folder, stop, group
        self._steps_per_epoch = len(self._epoch_batches(0))
        self._total_steps = settings.epochs_iters * self._steps_per_epoch
        self._average = WeightAverage(network, settings.ema_decay)
        self._optimizer = make_optimizer(network, settings.weight_decay, settings.gradient_clip)
        self._model = group.wrap(network)
        # on a CPU, paddle has no mixed precision
        self._is_mixed = settings.amp != "OFF" and Device.parse(settings.device).kind == "gpu"
        self._scaler = paddle.amp.GradScaler(enable=self._is_mixed, init_loss_scaling=_LOSS_SCALE)
        self._workers = settings.reader_count(group.size)
        self.progress = Progress()

    @property
    def steps_done(self) -> int:
        """Number of steps done."""
        return self.progress.epoch * self._steps_per_epoch + self.progress.step

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint of the same training."""
        self._network.set_state_dict(checkpoint.weights)
        self._average.network.set_state_dict(checkpoint.average)
        self._optimizer.set_state_dict(checkpoint.optimizer)
        if checkpoint.states["scaler"]:
            self._scaler.load_state_dict(checkpoint.states["scaler"])
        self.progress = Progress.from_states(checkpoint.states)

    def run(self) -> None:
        """Train to the end of the last epoch.

        Raises:
            TrainingInterruptedError: A signal stopped the training; `latest` is written.
            DatasetError: An image cannot be used; `latest` is written.
            TrainingError: The loss is not finite.
        """
        from tqdm import tqdm

        hidden = None if self._group.is_first else True
        done, name = self.steps_done, self._settings.model
        try:
            with tqdm(total=self._total_steps, initial=done, desc=name, unit="step", disable=hidden) as bar:
                while self.progress.epoch < self._settings.epochs_iters:
                    self._train_epoch(bar)
                    if self._is_due(self._settings.eval_interval):
                        self._evaluate()
                    self.progress.epoch += 1
                    self.progress.step = 0
                    if self._is_due(self._settings.save_interval, done=0):
                        self._save_latest()
        except (TrainingInterruptedError, DatasetError):
            self._save_latest()
            raise

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        settings, progress = self._settings, self.progress

        def change(pixels: npt.NDArray[np.uint8], index: int) -> npt.NDArray[np.uint8]:
            generator = np.random.default_rng((settings.seed, progress.epoch, index))
            return augment(pixels, generator, cutout=settings.cutout, rand=settings.rand_augment)

        left = self._epoch_batches(progress.epoch)[progress.step :]
        reading = read_batches(self._data.train, settings.transform, left, self._workers, change, make_upload())
        started = saved = time.monotonic()
        images = 0
        with contextlib.closing(reading) as batches:
            for inputs, targets in batches:
                learning_rate = cosine_rate(
                    self.steps_done,
                    peak=settings.peak_learning_rate,
                    total_steps=self._total_steps,
                    warmup_steps=settings.warmup_epochs * self._steps_per_epoch,
                )
                loss = self._train_step(inputs, targets, learning_rate)
                self._average.update(self.steps_done)
                progress.step += 1
                images += len(targets) * self._group.size
                progress.loss_sum += loss
                progress.image_count += len(targets)
                bar.update()
                if self.steps_done % settings.log_interval == 0 or self.steps_done == self._total_steps:
                    row = progress.close_row(self.steps_done, learning_rate)
                    rate = images / max(time.monotonic() - started, 1e-9)
                    self._log(
                        f"epoch {row.epoch}/{settings.epochs_iters} step {progress.step}/{self._steps_per_epoch} "
                        f"loss {row.loss:.4f} learning rate {learning_rate:.3e} {rate:.1f} images/s "
                        f"time left {self._remaining(rate)}"
                    )
                if time.monotonic() - saved > CHECKPOINT_INTERVAL_S:
                    self._save_latest()
                    saved = time.monotonic()
                self._obey_stop()

    def _train_step(self, inputs: paddle.Tensor, targets: paddle.Tensor, learning_rate: float) -> float:
        """Take one step and return the loss, summed over this process's images."""
        import paddle

        step_seed = np.random.SeedSequence((self._settings.seed, self.steps_done, self._group.rank))
        paddle.seed(int(step_seed.generate_state(1)[0]))
        self._optimizer.set_lr(learning_rate)
        self._network.train()
        with paddle.amp.auto_cast(enable=self._is_mixed, level="O1", dtype="float16"):
            logits = self._model(inputs)
        loss = asymmetric_loss(logits, targets).sum()
        value = float(loss)
        if not math.isfinite(value):
            rate = self._settings.peak_learning_rate
            raise TrainingError(
                f"The loss is {value} at epoch {self.progress.epoch + 1}, step {self.progress.step + 1}: the "
                f"training has diverged. Lower Train.learning_rate (it is {rate:g}) and start again, "
                f"or resume from an earlier checkpoint, if there is one."
            )
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.clear_grad()
        return value

    def _evaluate(self) -> None:
        epoch = self.progress.epoch + 1
        # several processes may have different numbers of batches, and so cannot ask each other
        after_batch = self._obey_stop if self._group.size == 1 else lambda: None
        networks = {"average": self._average.network, "weights": self._network}
        for network in networks.values():
            self._group.share_statistics(network)
        both = score_images(list(networks.values()), self._data.val, self._settings, self._group, after_batch)
        scores = {
            name: mean_average_precision(rows, self._data.val.targets)
            for name, rows in zip(networks, both, strict=True)
        }
        answers = both[-1]
        # a fresh network starts like this too
        collapsed = len(answers) > 1 and np.ptp(answers, axis=0).max() < _COLLAPSED
        if collapsed and epoch > self._settings.warmup_epochs:
            self._log(
                "Note: every image gets the same scores. If this persists, the network has collapsed: start again with "
                "a lower Train.learning_rate or from pretrained weights."
            )
        best = max(scores, key=lambda name: scores[name])
        self.progress.evaluations.append(EvaluationRow(self.steps_done, epoch, scores["weights"], scores["average"]))
        metrics = self.progress.metrics
        metrics["last_MultiLabelMAP"] = scores["weights"]
        improved = scores[best] > metrics.get("MultiLabelMAP", -1.0)
        if improved:
            metrics |= {"MultiLabelMAP": scores[best], "best_epoch": epoch, "best_weights": best}
        self._log(
            f"epoch {epoch}/{self._settings.epochs_iters} mAP of the moving average {scores['average']:.4f}, of the "
            f"weights {scores['weights']:.4f}{', the best so far' if improved else ''}"
        )
        if self._group.is_first:
            if improved:
                write_checkpoint(self._folder.best, self._checkpoint(), publish_average=best == "average")
            self._folder.write_progress(self.progress)

    def _log(self, text: str) -> None:
        if self._group.is_first:
            self._folder.log(text)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            weights=self._network.state_dict(),
            average=self._average.network.state_dict(),
            optimizer=self._optimizer.state_dict(),
            states={
                "epoch": self.progress.epoch,
                "metric": self.progress.metrics.get("MultiLabelMAP"),
                "progress": dataclasses.asdict(self.progress),
                "scaler": self._scaler.state_dict(),
                "config": self._settings.to_config(),
                "digests": self._data.digests,
                "world_size": self._group.size,
            },
        )

    def _save_latest(self) -> None:
        if self._group.is_first:
            write_checkpoint(self._folder.latest, self._checkpoint())
            self._folder.write_progress(self.progress)

    def _epoch_batches(self, epoch: int) -> list[Any]:
        settings = self._settings
        return epoch_batches(
            len(self._data.train), settings.batch_size, settings.seed, epoch, self._group.rank, self._group.size
        )

    def _is_due(self, interval: int, done: int = 1) -> bool:
        epochs = self.progress.epoch + done
        return epochs % interval == 0 or epochs == self._settings.epochs_iters

    def _obey_stop(self) -> None:
        if self._group.any(self._stop.requested):
            raise self._stop.error(
                f"Stopped in epoch {self.progress.epoch + 1} after step {self.progress.step} of "
                f"{self._steps_per_epoch}; resume with Train.resume_path={self._folder.latest}."
            )

    def _remaining(self, images_per_s: float) -> str:
        steps = self._total_steps - self.steps_done
        seconds = round(steps / self._steps_per_epoch * len(self._data.train) / max(images_per_s, 1e-9))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def make_upload() -> Callable[[npt.NDArray[np.float32]], Any]:
    """Return a function that copies an array to this thread's device, in whatever thread it is called."""
    import paddle

    device = paddle.device.get_device()
    return lambda array: paddle.to_tensor(array, place=device)


def score_images(
    networks: Sequence[paddle.nn.Layer],
    images: ImageSet,
    settings: TrainSettings,
    group: ProcessGroup,
    after_batch: Callable[[], None] = lambda: None,
) -> list[npt.NDArray[np.float32]]:
    """Return each network's scores (N, num_labels) float32 of all images, in every process, which scores its share.

    Each image is decoded once. The networks, which are left in evaluation mode, run in float32. An exception of
    `after_batch` ends the scoring.

    Raises:
        DatasetError: An image cannot be used.
    """
    import paddle
    from tqdm import tqdm

    for network in networks:
        network.eval()
    own = sequential_batches(len(images), settings.batch_size, group.rank, group.size)
    rows = [[np.empty((0, images.targets.shape[1]), np.float32)] for _ in networks]
    hidden = None if group.is_first else True
    bar = tqdm(total=len(own), desc="evaluation", unit="batch", leave=False, disable=hidden)
    workers = settings.reader_count(group.size)
    reading = read_batches(images, settings.transform, own, workers, upload=make_upload())
    with contextlib.closing(reading) as batches, bar, paddle.no_grad():
        for inputs, _ in batches:
            for network, scores in zip(networks, rows, strict=True):
                scores.append(paddle.nn.functional.sigmoid(network(inputs)).numpy())
            bar.update()
            after_batch()
    return [group.gather_rows(np.concatenate(scores), len(images)) for scores in rows]
