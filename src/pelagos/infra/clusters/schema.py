"""The schema of `clusters.yaml`. It never holds secrets, only where to find them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pelagos.infra.storage.addresses import reject_credentials
from pelagos.infra.storage.files import expanded_path

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# Words that end up in scripts and manifests: nothing that a shell or YAML could read otherwise.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_/][A-Za-z0-9_.:/@+-]{0,252}$")]
# `~` and `${VAR}` are replaced on this machine, when the file is read.
PathText = Annotated[str, AfterValidator(expanded_path), AfterValidator(reject_credentials)]
# Records hold it: none has a password or token.
AddressText = Annotated[str, AfterValidator(reject_credentials)]
NAMESPACE = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
AbsolutePath = Annotated[str, Field(pattern=r"^/[A-Za-z0-9_./@+-]{0,4094}$")]


def printable(text: str) -> str:
    """Return a text that scripts, manifests and terminals show as it is, on one line.

    Raises:
        ValueError: it holds a line break or another character that is not seen, with its place.
    """
    for place, character in enumerate(text):
        if not character.isprintable():
            raise ValueError(
                f"{text!r} holds the invisible character U+{ord(character):04X} at position "
                f"{place + 1}, which could add lines to scripts; remove it"
            )
    return text


def _slurm_path(path: str) -> str:
    """Return a path that a `#SBATCH --output=` line can name.

    sbatch knows no way to write these characters that holds in every version: a backslash turns its
    replacement of `%` off for the whole path.

    Raises:
        ValueError: the path holds a double quote or a backslash.
    """
    found = next((character for character in '"\\' if character in path), None)
    if found is not None:
        raise ValueError(f"{path} holds {found}, which sbatch does not accept in the name of a log")
    return path


Text = Annotated[str, AfterValidator(printable)]


class ClusterSection(BaseModel):
    """A part of clusters.yaml: frozen, unknown keys are errors, and every text is printable."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="after")
    @classmethod
    def _texts_are_printable(cls, value: Any) -> Any:
        _check_texts(value)
        return value


def _check_texts(value: Any) -> None:
    """Check every text in a value, after `${VAR}` was replaced. Raises `ValueError`."""
    if isinstance(value, str):
        printable(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key)
            _check_texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_texts(item)


class NodeConfig(ClusterSection):
    """The hardware of one node."""

    cpus: PositiveInt = Field(description="CPU cores that jobs may use.")
    gpus: NonNegativeInt = Field(0, description="GPUs.")
    memory_bytes: PositiveInt | None = Field(None, description="Host memory.")
    gpu_type: Word | None = Field(None, description="For example h100; selects nodes and is shown.")


class CommonConfig(ClusterSection):
    """Keys of every kind of cluster."""

    storage: PathText = Field(
        description="Directory or s3:// prefix of runs, records, checkpoints and shipped code."
    )
    endpoint_url: AddressText | None = Field(None, description="S3 endpoint of the storage.")
    region: str | None = Field(None, description="S3 region of the storage.")
    tracking: AddressText | None = Field(
        None, description="MLflow server for jobs that name none; without password."
    )
    defaults: dict[str, Any] = Field(
        {}, description="Dotted job keys and values, for jobs that do not set them."
    )
    node: NodeConfig | None = Field(None, description="Hardware of one node, for early refusal.")
    max_nodes: PositiveInt | None = Field(None, description="Most nodes the cluster can have.")
    price_per_device_hour: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Price of one GPU (without GPUs: of one CPU core) for an hour."
    )
    currency: Word = Field("USD", description="Of the price.")
    shared_paths: tuple[PathText, ...] = Field(
        (), description="Local paths that every node sees as well; others must be object storage."
    )
    secrets_file: AbsolutePath | None = Field(
        None,
        description="File on the cluster with NAME=value lines, mode 0600, read into the job's "
        "environment there.",
    )
    environment: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Text] = Field(
        {}, description="Environment variables of the job; not for secrets."
    )


class LocalConfig(CommonConfig):
    """This machine: a Ray of its own, for the length of the job."""

    kind: Literal["local"]
    shared_paths: tuple[PathText, ...] = ("/",)


class RayQuotas(ClusterSection):
    """Limits that the queue of a Ray cluster keeps."""

    running_jobs_per_user: PositiveInt | None = Field(None, description="At the same time.")
    gpus_per_user: PositiveInt | None = Field(None, description="In use at the same time.")
    cpus_per_user: PositiveInt | None = Field(None, description="In use at the same time.")


class RayConfig(CommonConfig):
    """A running Ray cluster of any origin, through its Jobs API."""

    kind: Literal["ray"]
    address: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] = Field(
        description="Of the dashboard, e.g. https://head:8265; no password in it."
    )
    token_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] = Field(
        "RAY_AUTH_TOKEN", description="Environment variable that holds the token."
    )
    token_file: PathText | None = Field(None, description="File that holds the token, mode 0600.")
    allow_http: bool = Field(
        False, description="Send the token over plain HTTP, on a network that you trust."
    )
    verify_tls: bool | PathText = Field(True, description="false, or the path of a CA bundle.")
    python: Word = Field("python", description="Interpreter on the nodes.")
    quotas: RayQuotas = RayQuotas()


class SlurmConfig(CommonConfig):
    """A Slurm cluster, from a machine that has sbatch."""

    kind: Literal["slurm"]
    storage: Annotated[PathText, AfterValidator(_slurm_path)] = Field(
        description="Directory that all nodes see, or s3:// prefix."
    )
    partition: Word | None = Field(None, description="Partition; default: the cluster's.")
    account: Word | None = Field(None, description="Account to charge.")
    qos: Word | None = Field(None, description="Quality of service.")
    constraint: Word | None = Field(None, description="Features that nodes must have.")
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,4}(:\d{2}){0,2}$")] | None = Field(
        None, description="Per allocation, e.g. 24:00:00; a run that needs longer is requeued."
    )
    notice_seconds: Annotated[int, Field(ge=10, le=3600)] = Field(
        300, description="Seconds before the limit at which the run saves and is requeued."
    )
    exclusive: bool = Field(
        True, description="Whole nodes: Ray stops every Ray of this user on a node when it ends."
    )
    venv: AbsolutePath | None = Field(None, description="Virtual environment on every node.")
    apptainer_image: AbsolutePath | None = Field(None, description="Image (.sif) to run in.")
    modules: tuple[Word, ...] = Field((), description="Environment modules to load.")
    shared_paths: tuple[PathText, ...] = ("/",)


class SpotConfig(ClusterSection):
    """Workers on nodes that may be taken away."""

    toleration_key: Word = Field(description="Taint that such nodes carry.")


class KubernetesConfig(CommonConfig):
    """A Kubernetes cluster with the KubeRay operator."""

    kind: Literal["kubernetes"]
    context: str | None = Field(None, description="Context of the kubeconfig; default: current.")
    namespace: Annotated[str, Field(pattern=NAMESPACE)] = Field(
        "default", description="Namespace of the jobs."
    )
    image: Word = Field(description="Container image with Pelagos's dependencies.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    service_account: Word | None = Field(
        None, description="Service account of the pods, for identities of a cloud."
    )
    mount_service_account_token: bool = Field(
        False, description="Whether pods can use the Kubernetes API as that account."
    )
    run_as_user: PositiveInt = Field(
        1000, description="User id of every process; the image's home must be its own."
    )
    operator_namespace: Annotated[str, Field(pattern=NAMESPACE)] | None = Field(
        None, description="Of the KubeRay operator; default: its pods in any namespace."
    )
    metrics_namespace: Annotated[str, Field(pattern=NAMESPACE)] | None = Field(
        None, description="Of Prometheus, which may then read metrics of the pods; default: none."
    )
    secret_name: Word | None = Field(
        None, description="Secret whose keys become environment variables (object store, MLflow)."
    )
    queue_name: Word | None = Field(None, description="Kueue local queue.")
    priority_classes: dict[int, Word] = Field(
        {}, description="Priority: priority class; the highest that is not above the job's."
    )
    node_selector: dict[Word, Text] = Field({}, description="Labels of nodes for workers.")
    spot: SpotConfig | None = None
    shared_memory_bytes: PositiveInt = Field(16 * 2**30, description="Of /dev/shm in each pod.")
    keep_seconds: NonNegativeInt = Field(600, description="Pods stay this long after the end.")


ClusterConfig = LocalConfig | RayConfig | SlurmConfig | KubernetesConfig
CLUSTER_KINDS: dict[
    str, type[LocalConfig] | type[RayConfig] | type[SlurmConfig] | type[KubernetesConfig]
] = {
    "local": LocalConfig,
    "ray": RayConfig,
    "slurm": SlurmConfig,
    "kubernetes": KubernetesConfig,
}
