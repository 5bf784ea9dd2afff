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
_FOURTEEN = (*_EIGHT, flowers, tissue, faces, pets, objects, things)
_TWENTY = (*_FOURTEEN, thumbnails, food, clothes, letters, script, reviews)

TASKS = {module.TASK.name: module.TASK for module in _TWENTY}
