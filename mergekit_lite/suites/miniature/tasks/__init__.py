"""The drawn tasks, one file each, in the benchmark's order."""

from mergekit_lite.suites.miniature.tasks import aerial, digits, landcover, numbers, scenes, signs, textures, vehicles

TASKS = {
    module.TASK.name: module.TASK for module in (scenes, vehicles, aerial, landcover, numbers, signs, digits, textures)
}
