"""The drawn tasks, one file each, in the benchmark's order. A new task is a file and a row here."""

from mergekit_lite.suites.miniature.tasks import (
    aerial,
    clothes,
    digits,
    faces,
    flowers,
    food,
    landcover,
    letters,
    numbers,
    objects,
    pets,
    reviews,
    scenes,
    script,
    signs,
    textures,
    things,
    thumbnails,
    tissue,
    vehicles,
)

_EIGHT = (scenes, vehicles, aerial, landcover, numbers, signs, digits, textures)
_TWELVE = (flowers, tissue, faces, pets, objects, things, thumbnails, food, clothes, letters, script, reviews)

DRAWN = {module.TASK.name: module.TASK for module in (*_EIGHT, *_TWELVE)}
"""All tasks that can be drawn: counterparts of the benchmark's twenty, in its order."""

TASKS = {module.TASK.name: module.TASK for module in _EIGHT}
"""The tasks of the suite. Its base was pre-trained on these; the other twelve join with a base that has seen them."""
