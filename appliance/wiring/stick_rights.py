"""Who may change this box by stick: the keys that count, the mode that asks for them, and what a signature has to be of."""

from __future__ import annotations

from appliance.box import signature, stick
from appliance.box.signature import Key, SignatureError, Verified
from appliance.box.stick import Found
from appliance.box.store import Generation
from appliance.box.words import plain
from appliance.config import ConfigError, Station
from appliance.wiring.stick_box import Box, Refused, Told, tell
from appliance.wiring.stick_judge import Judgement
from appliance.wiring.store import load_chosen


def keys_of(found: Found, box: Box, told: Told) -> tuple[list[Key], dict[str, bytes]]:
    """(all that count for this stick, those of them that are yet to be enrolled). Raises Refused, OSError."""
    try:
        have = signature.enrolled(box.keys_dir)
    except SignatureError as why:
        raise Refused(f"an enrolled key cannot be read any more, so nothing is taken: {why}") from why
    if not found.keys:
        return have, {}
    raw = {name.removesuffix(".pub"): (box.staging / stick.ENROL / name).read_bytes() for name in found.keys}
    try:
        offered = signature.check_keys(raw)
    except SignatureError as why:
        raise Refused("a key in enrol/ cannot be used", [f"{stick.ENROL}/{why}"]) from why
    if {key.public for key in offered} <= {key.public for key in have}:
        told.notes.append(f"the keys in {stick.ENROL}/ are enrolled already")
        return have, {}
    if have:
        names = ", ".join(map(str, have))
        raise Refused(f"keys are enrolled once, and {names} is: take the folder {stick.ENROL} off the stick")
    if box.store.good is not None:
        raise Refused(
            f"keys are enrolled at the first start only, and a configuration was applied already: take the folder {stick.ENROL} "
            "off the stick; to begin anew, a person removes the box's configuration store by hand"
        )
    return offered, raw


def enrol_new(keys: dict[str, bytes], box: Box, told: Told) -> None:
    """Raises OSError."""
    enrolled = signature.enrol(box.keys_dir, keys)
    names = ", ".join(map(str, enrolled))
    told.text = f"enrolled: {names}; from now on only what one of them signed is the first configuration of this box"
    told.notes.append(f"enrolled: {names}")
    told.enrolled = True
    listed = [{"name": key.name, "id": key.id} for key in enrolled]
    tell(box, "keys_enrolled", {"who": told.by, "keys": listed, "text": told.text})


def mode_of(running: Station | None, good: Generation | None, keys: list[Key]) -> str:
    """Whether signatures count. Where nothing can say so any more, or nothing was ever applied: `require` as soon as a key is
    enrolled, for who enrols keys wants them asked; else `warn`."""
    if running is not None and good is not None:
        return running.signature
    return "require" if keys else "warn"


def signed_by(found: Found, box: Box, mode: str, keys: list[Key], told: Told) -> Verified | None:
    """None: there is none, or nobody asks. Raises Refused."""
    if mode == "off":
        return None
    if not found.signature:
        if mode == "require":
            raise Refused(f"it is not signed, and this box takes signed configurations only; put {stick.SIGNATURES[0]} beside it")
        told.notes.append("warning: it is not signed (signature: warn)")
        return None
    raw, signed = (box.staging / stick.CONFIGURATION).read_bytes(), (box.staging / found.signature).read_bytes()
    verified = signature.verify(raw, signed, keys)
    told.found.append(f"{found.signature}: {verified.text}")
    if verified.outcome == "good":
        return verified
    # A signature that is wrong is more than none: the file is not what its author signed, by accident or not.
    if mode == "require" or verified.outcome in ("mismatch", "unreadable"):
        raise Refused(f"{found.signature}: {verified.text}")
    told.notes.append(f"warning: {verified.text} (signature: warn)")
    return verified


def what_runs(box: Box) -> Station | None:
    """What runs; None where nothing does or it cannot be read any more. Raises OSError."""
    try:
        return load_chosen(box.store, box.data_dir).station
    except ConfigError:  # strict_start: the box stands; a stick is how it gets up again
        return None


def refused_already(box: Box, found: Found) -> bool:
    """Whether keys or signature refuse this stick's configuration whatever its bundles hold."""
    if stick.CONFIGURATION not in found.sizes:
        return False
    try:
        keys, _new = keys_of(found, box, Told())
        signed_by(found, box, mode_of(what_runs(box), box.store.good, keys), keys, Told())
    except Refused:
        return True
    except OSError:  # the box's own disk: who asks again in its turn tells of it
        return False
    return False


def check_allowed(judged: Judgement, good: Generation | None, mode: str, verified: Verified | None, keys: list[Key]) -> None:
    """Raises Refused."""
    if good is not None and judged.station != good.meta.station:
        raise Refused(
            f"it is for station {judged.station}, and this is {good.meta.station}; plug it in there, or write this one's name"
        )
    if mode == "require" and good is not None and judged.revision < good.meta.revision:
        raise Refused(
            f"its revision is {judged.revision}, and {good.meta.revision} runs; with signature: require it cannot go back: "
            f"write revision: {good.meta.revision + 1} and sign it anew"
        )
    if judged.signature == "require" and not (verified and verified.outcome == "good"):
        enough = "sign this one too" if keys else f"enrol a key first: {stick.ENROL}/NAME.pub on the first stick of a box"
        raise Refused(f"it says signature: require and no enrolled key signed it, so no later one could be applied; {enough}")


def called(who: str, verified: Verified | None, judged: Judgement) -> str:
    """The stick, the key that signed, and the author that the file names."""
    by_key = f", key {verified.key}" if verified and verified.key else ""
    return who + by_key + (f", author {plain(judged.author)}" if judged.author else "")
