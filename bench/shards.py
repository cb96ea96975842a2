"""What the work between trainings costs in several processes: CPU seconds of the busiest one, and of all together.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 -m bench.shards

One clip is labelled by a network of the usual kind, without and with aggregation by DIS flow, its flow is computed
ahead, and as many clips as there are processes, and three more, are scored. Without torchrun there is one process, to
compare with. Time, not waiting, is measured: on fewer cores than processes it says what each would need.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vda import distributed
from vda.data.clip import VideoDataset
from vda.data.synthetic import embedded
from vda.flow.cache import precompute
from vda.flow.providers import DISFlow
from vda.models import build_network
from vda.options import Occlusion, Pseudo
from vda.pseudo import Generator, generate
from vda.scoring import score

SIZE, FRAMES, REPEATS = (128, 256), 24, 2
CPU = torch.device("cpu")


def tasks(folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured; each writes to a folder of its own."""
    film: VideoDataset = embedded("camera", clips=1, length=FRAMES, size=SIZE, cache=FRAMES)
    many: VideoDataset = embedded("camera", clips=4, length=FRAMES // 4, size=SIZE, cache=FRAMES)
    torch.manual_seed(0)
    network = build_network("deeplab-resnet18", film.num_classes, batch_norm="train").eval()
    for clip in (*film.clips, *many.clips):
        for i in range(len(clip)):
            clip.frame(i), clip.label(i)  # rendered once and kept: the network is what counts here

    def labels(aggregate: bool) -> None:
        here = Path(distributed.from_first(tempfile.mkdtemp(dir=folder)))
        generator = Generator(network, DISFlow(), Pseudo(aggregate=aggregate), Occlusion(), CPU)
        generate(generator, film, here, model="", flow_name="dis", seed=0)

    def flow() -> None:
        precompute(DISFlow(), film, Path(distributed.from_first(tempfile.mkdtemp(dir=folder))))

    return {
        f"labels, {FRAMES} frames": lambda: labels(False),
        f"labels, {FRAMES} frames, aggregated": lambda: labels(True),
        f"flow, {FRAMES - 1} pairs": flow,
        f"scores, 4 clips of {FRAMES // 4} frames": lambda: score(network, many, CPU),
    }


def main() -> None:
    distributed.start("cpu")
    with tempfile.TemporaryDirectory() as own:
        folder = Path(distributed.from_first(own))
        measured = {}
        for name, task in tasks(folder).items():
            times = []
            for _ in range(REPEATS):
                distributed.wait()
                before = time.process_time()
                task()
                times.append(distributed.gather(time.process_time() - before))
            measured[name] = min(times, key=sum)
        distributed.wait()
    print(f"| {distributed.size()} processes, {SIZE[0]} x {SIZE[1]} | busiest, s | all, s |\n| --- | ---: | ---: |")
    for name, of_processes in measured.items():
        print(f"| {name} | {max(of_processes):.2f} | {sum(of_processes):.2f} |")
    distributed.leave()


if __name__ == "__main__":
    main()
