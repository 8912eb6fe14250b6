"""Architecture families: which model types are supported and where their parts are."""

from mediant.core.errors import unknown
from mediant.subject.families.family import Family, Shape, check
from mediant.subject.families.gemma import GEMMA, GEMMA3_VL
from mediant.subject.families.gpt2 import GPT2
from mediant.subject.families.internvl import INTERNVL
from mediant.subject.families.llama import LLAMA
from mediant.subject.families.llava import LLAVA, LLAVA_NEXT
from mediant.subject.families.neox import NEOX
from mediant.subject.families.olmo2 import OLMO2
from mediant.subject.families.ovis import OVIS2
from mediant.subject.families.qwen import QWEN
from mediant.subject.families.qwen_vl import QWEN_VL
from mediant.subject.families.sight import Sight
from mediant.subject.families.smolvlm import SMOLVLM
from mediant.subject.families.toy import TOY

FAMILIES: tuple[Family, ...] = (
    LLAMA, QWEN, GPT2, GEMMA, OLMO2, NEOX, TOY,
    QWEN_VL, LLAVA, LLAVA_NEXT, INTERNVL, OVIS2, GEMMA3_VL, SMOLVLM,
)  # fmt: skip


def family_of(model_type: str) -> Family:
    """The family that covers a Hugging Face `model_type`.

    Raises:
        UnknownName: no family covers it; the nearest supported types are named.
    """
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    supported = [t for f in FAMILIES for t in f.model_types]
    raise unknown("model type", model_type, supported, note=f"Supported model types: {', '.join(supported)}.")


__all__ = ["FAMILIES", "Family", "Shape", "Sight", "check", "family_of"]
