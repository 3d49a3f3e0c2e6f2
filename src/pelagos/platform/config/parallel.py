"""The section `parallel` of a training job: the strategy, and the options of each."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pelagos.platform.config.marks import Meaning, Trait
from pelagos.platform.config.section import PathText, PositiveInt, Section

TF32_NEEDS_A_GPU = (
    "tf32 is a format of NVIDIA GPUs, but resources.gpus_per_worker is 0; use fp32 or bf16"
)


class EveryNConfig(Section):
    """Recompute some blocks in the backward pass."""

    every_n: PositiveInt = Field(description="Recompute every n-th block, the first one included.")


class MemoryBudgetConfig(Section):
    """Recompute the parts that an integer program chooses (torch's, solved by PuLP)."""

    memory_budget_bytes: PositiveInt = Field(
        description="Peak memory of one rank: weights, gradients, moments and activations."
    )


class FullyShardConfig(Section):
    """Options of `fsdp` and `hsdp`; other strategies ignore them."""

    shard_group_size: PositiveInt | None = Field(
        None, description="hsdp: ranks that share one copy; default: the ranks of one node."
    )
    reshard_after_forward: bool = Field(
        True, description="Free gathered parameters after the forward pass, gather them again."
    )
    cpu_offload: bool = Field(
        False, description="Keep parameters, gradients and moments in host memory between uses."
    )
    param_dtype: Annotated[Literal["fp32", "bf16", "fp16"], Trait.ACCURACY] = Field(
        "fp32",
        description="Gather parameters in this type: half the traffic, other rounding than ddp.",
    )
    reduce_dtype: Annotated[Literal["fp32", "bf16", "fp16"], Trait.ACCURACY] = Field(
        "fp32", description="Reduce gradients in this type."
    )


class ZeroConfig(Section):
    """Options of `zero1`, `zero2` and `zero3`; other strategies ignore them."""

    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        "none", description="Where fp32 weights and moments live between steps (nvme: zero3 only)."
    )
    offload_parameters: Literal["none", "cpu", "nvme"] = Field(
        "none", description="zero3: where parameters live between uses."
    )
    nvme_path: Annotated[PathText | None, Meaning.PLACE] = Field(
        None, description="Directory on an NVMe disk, for nvme."
    )
    hpz_partition_size: PositiveInt = Field(
        1, description="ZeRO++, zero3: ranks of a secondary partition within a node."
    )
    quantized_weights: Annotated[bool, Trait.ACCURACY] = Field(
        False, description="ZeRO++, zero3: gather int8 weights."
    )
    quantized_gradients: Annotated[bool, Trait.ACCURACY] = Field(
        False, description="ZeRO++, zero3: reduce int4 gradients."
    )
    config: Annotated[dict[str, Any] | PathText | None, Trait.ACCURACY] = Field(
        None,
        description="Your own DeepSpeed configuration, or the path of its JSON; merged, and rejected "
        "if it contradicts the job.",
    )


class ParallelConfig(Section):
    """How one step is spread over workers. Only `strategy` needs to change between strategies."""

    strategy: Literal["single", "ddp", "fsdp", "hsdp", "zero1", "zero2", "zero3"] = Field(
        "ddp", description="Parallel strategy (docs/strategies.md)."
    )
    precision: Annotated[Literal["fp32", "tf32", "bf16", "fp16"], Trait.ACCURACY] = Field(
        "fp32",
        description="tf32: TensorFloat-32 products; bf16, fp16: autocast (weights, moments and "
        "reductions stay fp32; fp16 scales the loss).",
    )
    micro_batch_size: Annotated[PositiveInt | None, Trait.ACCURACY] = Field(
        None, description="Samples per forward pass and worker; default: no accumulation."
    )
    activation_checkpointing: (
        Literal["none", "full", "selective"] | EveryNConfig | MemoryBudgetConfig
    ) = Field(
        "none",
        description="Recompute in the backward pass: full: each block; selective: all but matrix "
        "products, convolutions and attention; {every_n: 2}; {memory_budget_bytes: 8000000000}.",
    )
    compile: bool = Field(False, description="torch.compile each block.")
    fsdp: FullyShardConfig = FullyShardConfig()
    zero: ZeroConfig = ZeroConfig()
