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

TASKS = {
    module.TASK.name: module.TASK
    for module in (
        *(scenes, vehicles, aerial, landcover, numbers, signs, digits, textures),  # the benchmark's eight
        *(flowers, tissue, faces, pets, objects, things),  # with these, its fourteen
        *(thumbnails, food, clothes, letters, script, reviews),  # and its twenty
    )
}
"""All drawn tasks, in the benchmark's order."""
