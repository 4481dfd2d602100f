"""transformers' CLIP block for the class token alone, see `last_block`."""

from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.models.clip.modeling_clip import CLIPEncoderLayer


class ClassTokenLayer(CLIPEncoderLayer):
    """transformers' CLIP block, for token 0 alone; attention is torch's, whichever is configured."""

    def forward(
        self, hidden_states: Float[Tensor, "b n dim"], attention_mask: Tensor | None = None, **_: Any
    ) -> Float[Tensor, "b 1 dim"]:
        attention = self.self_attn
        keys = self.layer_norm1(hidden_states)
        heads = (attention.num_heads, -1)
        q = attention.q_proj(keys[:, :1]).unflatten(-1, heads).transpose(1, 2)
        k = attention.k_proj(keys).unflatten(-1, heads).transpose(1, 2)
        v = attention.v_proj(keys).unflatten(-1, heads).transpose(1, 2)
        dropout = attention.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout)
        x = hidden_states[:, :1] + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.layer_norm2(x))


CLASSES = {CLIPEncoderLayer: ClassTokenLayer}
