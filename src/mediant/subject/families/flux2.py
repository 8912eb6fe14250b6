"""FLUX.2 [dev] and [klein] (Black Forest Labs): double blocks, then single ones, all with one modulation per kind."""

from mediant.subject.families.two_streams import TwoStreamFamily

_TOGETHER = "attention and MLP read the same stream, and one projection adds up their outputs"
FLUX2 = TwoStreamFamily(
    name="flux2",
    transformers=("Flux2Transformer2DModel",),
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    refuses={
        "Flux2KleinKVPipeline": "it lets references attend to themselves alone, keeps their keys and values after the first step "
        "and leaves them out of the sequence then, so no later edit can reach them; load its folder as Flux2KleinPipeline",
        "Flux2KleinInpaintPipeline": "it puts a masked image among the latents, which has no name here",
    },
    double="transformer_blocks",
    single="single_transformer_blocks",
    embed=("context_embedder", "x_embedder"),
    final="norm_out",
    attn="attn",
    q=("add_q_proj", "to_q"),
    k=("add_k_proj", "to_k"),
    v=("add_v_proj", "to_v"),
    fused="to_qkv_mlp_proj",
    out=("to_add_out", "to_out.0"),
    single_out="to_out",
    mlp=("ff_context", "ff"),
    mlp_down="linear_out",
    cannot={
        "resid_mid": "no module hands over the stream between attention and MLP",
        "head_result": "heads are projected together and then gated by the step's modulation; use head_z",
    },
    cannot_single={"attn_out": _TOGETHER, "mlp_in": _TOGETHER, "mlp_out": _TOGETHER},
)
