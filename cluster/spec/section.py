"""The base of every section of a file, and the kinds of number they share."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

NAME = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, finite numbers only."""

    # Defaults too: a number left out and the same one written must be equal to the last digit of a digest.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_written_is_all_defaults(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes `true` for 1, also inside a mapping of numbers."""
        values = value.values() if isinstance(value, dict) else [value]
        if any(isinstance(one, bool) for one in values) and _numeric(
            cls.model_fields[info.field_name or ""].annotation
        ):
            raise ValueError(f"{value!r}: true and false are no numbers; write one")
        return value


def _numeric(annotation: Any) -> bool:
    return annotation in (int, float) or any(_numeric(part) for part in get_args(annotation))
