"""Reference binding: does what a reference image shows reach the picture through the text, or directly?

Ge, Gandikota, Torralba & Rott Shaham (2026, arXiv 2605.24624) let FLUX.2 [klein] draw with a reference image and intervened three
ways. Text activations of such a run, put into a run without instruction or reference, brought its colour back in every case and
its style in 91.8 %; cutting attention from reference to text lost colour in 86.2 % and style in 97.3 %, from reference to picture
in 13.4 % and 16.4 %; text taken from a run with another reference moved colour in 92.0 %. Most of it sat in padding. A person's
identity went the other way: past the text.

    mediant run reference-binding --preset bundled
    mediant run reference-binding --model path/to/FLUX.2-klein-4B --judge path/to/judge

It does not show that text is where the model decides anything, nor what a large model does where the small one here does
otherwise.
"""
