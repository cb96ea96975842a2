"""The benchmark suite: `python -m bench` ends in one table, `pytest bench` is the same with pytest's own options.

bench_<op>.py   one per operator: its shapes and its rows; pseudo labels and training data beside their networks
compositions.py what people write today, from torch's own functions
peers.py        the same operators in other libraries, where they are installed
work.py         bytes and FLOPs that an operator cannot avoid
inputs.py       images, flow and predictions like those of driving video
films.py        clips in memory, and calls that label them
feeds.py        training data, and calls that draw it
networks.py     segmentation networks of random weights
memory.py       peaks, as torch and Python count them
harness.py      checks that a row agrees with ours, then times it
ceilings.py     a large matrix product and a large copy, measured in the same run
steps.py        where the time of a training step goes, beside its network alone; a command of its own
peaks.py        peak memory of a training step, with whole tubes and frame by frame; a command of its own
gpu.py          build, tests, sanitizers, steps and benchmarks on a machine with a GPU, into one JSON file
"""
