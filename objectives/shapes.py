"""Names of the tensor shapes that objectives share.

Rows are the completions of a rollout, prompt by prompt; time counts a completion's tokens, padded on the right.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

PerRow = Float[Tensor, "rows"]
PerToken = Float[Tensor, "rows time"]
#: index of the prompt that each row belongs to, 0 ... prompts - 1
Groups = Int[Tensor, "rows"]
TokenIds = Int[Tensor, "rows time"]
#: True on tokens that the policy sampled
TokenMask = Bool[Tensor, "rows time"]
