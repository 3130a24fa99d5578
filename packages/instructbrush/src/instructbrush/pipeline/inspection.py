"""What an instruction file says and holds, as text."""

from instructbrush.models.instruction import Instruction


def describe(instruction: Instruction, start: Instruction | None = None) -> str:
    """A table of what an instruction is and holds.

    Args:
        instruction: to be described.
        start: what its optimisation started from, for how far it has gone from there.
    """
    about = instruction.about
    numbers = sum(each.numel() for part in (instruction.keys, instruction.values) for each in part.values())
    rows = {
        "edit": about.edit or "-",
        "base model": about.base_model or "-",
        "initial instruction": repr(about.init_text),
        "words removed": ", ".join(about.phrases_before) or "-",
        "words added": ", ".join(about.phrases_after) or "-",
        "tokens": f"{about.num_tokens} of {instruction.text_embedding.shape[1]}",
        "time partitions": f"{about.num_partitions} of {about.num_train_timesteps} steps",
        "prediction": about.prediction_type,
        "applied with": f"guidance {about.guidance_scale:g}, image guidance {about.image_guidance_scale:g}, {about.sampling_steps} steps",
        "learnt": ", ".join(f"{key} {value}" for key, value in about.train.items()) or "-",
        "licence": about.licence or "-",
        "numbers": f"{numbers:,} ({numbers * 2 / 1024:.0f} KiB in 16 bits)",
    }
    width = max(map(len, rows))
    lines = [f"{key:<{width}}  {value}" for key, value in rows.items()]
    lines += ["", f"{'layer':<60} width  mean |key| by partition | mean |value| by partition"]
    gone = {} if start is None else instruction.distance_from(start)
    if gone:
        lines[-1] += " | moved by partition, relative"
    for name, size in about.layers.items():
        keys, values = (
            " ".join(f"{each:.2f}" for each in part[name].float().norm(dim=-1).mean(1).tolist())
            for part in (instruction.keys, instruction.values)
        )
        moved = " | " + " ".join(f"{each:.2f}" for each in gone[name]) if gone else ""
        lines.append(f"{name:<60} {size:>5}  {keys} | {values}{moved}")
    return "\n".join(lines)
