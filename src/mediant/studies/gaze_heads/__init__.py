"""Gaze heads: a few attention heads look at what a vision-language model is describing, and steer it.

Gandikota & Bau (2026, arXiv 2606.14703) rank heads of Qwen3-VL by their attention on the comic panel that a question asks about.
Turning the 100 best of 1,152 to another panel made the model describe that one in 83.1 % of 3,000 cases, and a schedule of
panels was followed while it spoke (Spearman 0.87); as many heads of the lowest scores did nothing.

    mediant run gaze-heads --preset bundled
    mediant run gaze-heads --model Qwen/Qwen3-VL-2B-Instruct --data my_strips/

It does not show that these heads are needed for seeing, nor that a model that can be turned knows what it is looking at.
"""
