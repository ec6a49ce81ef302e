"""The form of train_encoder: what a person may choose for one run."""

from airflow.sdk import Param

PARAMS = {
    "preset": Param(
        None, type=["null", "string"], title="Encoder",
        description="A preset, a recipe file (.toml), open_clip's MODEL:TAG, hf-hub:organisation/name, local-dir:folder, timm:MODEL, "
        "or a package of weights. Empty: the setting VITRINE_ENCODER_PRESET",
    ),
    "training": Param(
        None, type=["null", "string"], title="Training",
        description="none: the pretrained encoder as it is. Empty: the preset's; without train photos a pretrained encoder is taken as it "
        "is, too, unless epochs are given",
    ),
    "student": Param(
        None, type=["null", "string"], title="Student",
        description="A timm model, distilled from the encoder for queries; none: no student. Empty: the preset's",
    ),
    "epochs": Param(
        None, type=["null", "number"], exclusiveMinimum=0, title="Epochs",
        description="Passes over the train photos (without any: over the product pictures), for teacher and student alike. Empty: the "
        "preset's steps",
    ),
    "alpha": Param(
        None, type=["null", "number"], minimum=0, maximum=1, title="Alpha",
        description="Share of the student's own task in its loss; the rest imitates the teacher. Empty: the preset's",
    ),
    "photo_days": Param(
        None, type=["null", "integer"], minimum=0, title="Data window",
        description="Train photos of so many days up to the newest (needs taken_at); 0: all. Empty: the preset's",
    ),
    "force": Param(False, type="boolean", title="Train again", description="Trains anew even if this recipe and data were trained before"),
}  # fmt: skip
