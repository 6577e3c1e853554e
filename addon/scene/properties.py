# SPDX-License-Identifier: GPL-3.0-or-later
"""What the artist edits, stored in the .blend as `Scene.onmodel`.

Everything hangs on the scene, so it is saved, undone and copied with it. These groups hold data
only: `shots.py`, `cast.py` and `film.py` read them into plain values.

No `from __future__ import annotations` here: Blender reads the annotations as values.
"""

import bpy
from bpy.props import (
    BoolProperty,
    CollectionProperty,
    EnumProperty,
    FloatProperty,
    IntProperty,
    PointerProperty,
    StringProperty,
)

from ..core.holding import usual_weight
from . import properties_faces, shapes
from .properties_faces import OnmodelFacePass, OnmodelReference, OnmodelRetakes


def _is_armature(_self: object, item: bpy.types.Object) -> bool:
    return item.type == "ARMATURE"


def _is_mesh(_self: object, item: bpy.types.Object) -> bool:
    return item.type == "MESH"


def _is_camera(_self: object, item: bpy.types.Object) -> bool:
    return item.type == "CAMERA"


def _search_models(_self: object, _context: object, _text: str) -> list[str]:
    from . import server_words

    return list(server_words.model_names())


def _search_presets(self: object, _context: object, _text: str) -> list[str]:
    from . import server_words

    return list(server_words.presets(getattr(self, "model", "")))


def _search_joints(_self: object, _context: object, _text: str) -> list[str]:
    from .cast import joint_names

    return joint_names()


def _search_bones(self: bpy.types.PropertyGroup, _context: object, _text: str) -> list[str]:
    from .cast import bones_beside

    return bones_beside(self)


def _shot_renamed(self: bpy.types.PropertyGroup, _context: object) -> None:
    from . import shots

    shots.name_marker(self)


class OnmodelLora(bpy.types.PropertyGroup):
    """A LoRA by the name the server knows it under."""

    name: StringProperty(name="LoRA", description="Name of the LoRA on the server")
    weight: FloatProperty(
        name="Weight",
        description="How strongly the LoRA acts; 1 is as it was trained",
        default=1.0,
        soft_min=0.0,
        soft_max=1.5,
        min=-2.0,
        max=2.0,
    )
    enabled: BoolProperty(name="Use", description="Use this LoRA", default=True)


class OnmodelMesh(bpy.types.PropertyGroup):
    """A mesh that belongs to a character: body, hair, clothes."""

    item: PointerProperty(type=bpy.types.Object, name="Mesh", poll=_is_mesh)


class OnmodelJoint(bpy.types.PropertyGroup):
    """A joint bound to a bone by hand; it wins over what the rig tables found."""

    joint: StringProperty(
        name="Joint", description="Joint of the drawn pose", search=_search_joints
    )
    bone: StringProperty(
        name="Bone", description="Bone of the armature it sits on", search=_search_bones
    )
    end: EnumProperty(
        name="End",
        description="Which end of the bone is the joint",
        items=(
            ("head", "Head", "The bone's root"),
            ("tail", "Tail", "The bone's tip"),
        ),
        default="head",
    )


class OnmodelCharacter(bpy.types.PropertyGroup):
    """One member of the cast: who it is, and which armature and meshes play it."""

    name: StringProperty(name="Name", description="Name of the character")
    enabled: BoolProperty(name="In the cast", description="Draw this character", default=True)
    armature: PointerProperty(
        type=bpy.types.Object,
        name="Armature",
        description="Rig that gives the character's pose",
        poll=_is_armature,
    )
    meshes: CollectionProperty(type=OnmodelMesh)
    mesh_index: IntProperty()
    noun: StringProperty(
        name="Noun",
        description="What the character is, in one or two words: man, woman, child, robot",
        default="person",
    )
    trigger: StringProperty(
        name="Trigger", description="Word the character's LoRA was trained with"
    )
    prompt: StringProperty(
        name="Looks",
        description="What is true of this character only: red coat, grey beard, angry",
    )
    loras: CollectionProperty(type=OnmodelLora)
    lora_index: IntProperty()
    references: CollectionProperty(type=OnmodelReference)
    reference_index: IntProperty()
    use_reference_weight: BoolProperty(
        name="Own Hold",
        description="Set by hand how firmly the portraits hold this character. Off: the server"
        " holds characters that have no LoRA by their portraits, and leaves the others to theirs",
        default=False,
    )
    reference_weight: shapes.weight(
        "Hold",
        "How firmly the drawing keeps to the face in the portraits: more is closer to them, less"
        " leaves more to the words and the LoRA. 0.7 is usual; 0 only compares the drawing with"
        " them",
        usual_weight,
        usual_most=1.0,
    )
    joints: CollectionProperty(type=OnmodelJoint)
    joint_index: IntProperty()


class OnmodelKeyframe(bpy.types.PropertyGroup):
    """A frame of a shot about which something is kept: a mark, or a picked take."""

    frame: IntProperty(name="Frame")
    marked: BoolProperty(name="Keyframe", description="Draw this frame", default=False)
    take: IntProperty(
        name="Take", description="The take that the artist has picked; 0 for none", min=0
    )


class OnmodelShot(bpy.types.PropertyGroup):
    """What the artist adds to a camera marker. Bound by `shots.bind`; `uid` never changes."""

    uid: StringProperty(options={"HIDDEN"})
    camera: PointerProperty(
        type=bpy.types.Object, name="Camera", poll=_is_camera, options={"HIDDEN"}
    )
    marker_name: StringProperty(options={"HIDDEN"})
    marker_frame: IntProperty(options={"HIDDEN"})
    detached: BoolProperty(
        options={"HIDDEN"}, description="No marker was found for this shot when last looked"
    )
    name: StringProperty(
        name="Name",
        description="Name of the shot and of its marker; files are named by it",
        update=_shot_renamed,
    )
    enabled: BoolProperty(name="Draw", description="Draw this shot with the film", default=True)
    prompt: StringProperty(
        name="Prompt",
        description="What this shot shows: place, light, action. The film's style is added",
    )
    negative_prompt: StringProperty(
        name="Avoid", description="What this shot must not show. The film's is added"
    )
    use_seed: BoolProperty(
        name="Own seed", description="Give this shot its own seed, not the film's", default=False
    )
    seed: shapes.seed("Seed of this shot")
    use_resolution: BoolProperty(
        name="Own size", description="Deliver this shot in its own size", default=False
    )
    width: shapes.delivered("Width", 1920)
    height: shapes.delivered("Height", 1080)
    use_handles: BoolProperty(
        name="Own handles", description="Give this shot its own handles", default=False
    )
    handles: shapes.handles("Frames kept before and after the shot for the edit")
    first: BoolProperty(name="First", description="Draw the first frame of the shot", default=True)
    last: BoolProperty(name="Last", description="Draw the last frame of the shot", default=True)
    keyframes: CollectionProperty(type=OnmodelKeyframe)
    takes: shapes.takes(
        "Takes",
        "Takes drawn of each keyframe of this shot; 0 uses the film's number",
        default=0,
        least=0,
    )
    drawn: StringProperty(
        options={"HIDDEN"}, description="Settings that the shot was last drawn with, as a hash"
    )


class _MapFields:
    weight: shapes.weight("Weight", "How strictly the drawing follows this map")
    start: shapes.share("From", "Part of the drawing at which the map begins to guide", 0.0)
    end: shapes.share("To", "Part of the drawing at which the map stops guiding", 1.0)


class OnmodelMap(_MapFields, bpy.types.PropertyGroup):
    """A map that guides the drawing unless switched off."""

    use: BoolProperty(name="Use", description="Guide the drawing by this map", default=True)


class OnmodelExtraMap(_MapFields, bpy.types.PropertyGroup):
    """A map that guides the drawing only if switched on."""

    use: BoolProperty(name="Use", description="Guide the drawing by this map", default=False)


class OnmodelSceneSettings(bpy.types.PropertyGroup):
    """The film: defaults of all shots, the shots and the cast."""

    film: StringProperty(
        name="Film",
        description="Name of the film, used in file names. Empty: the name of the .blend file",
    )
    prompt: StringProperty(
        name="Style",
        description="Added to the prompt of every shot: medium, era, light",
    )
    negative_prompt: StringProperty(name="Avoid", description="What no shot of the film may show")
    seed: shapes.seed("Equal seeds and settings give equal drawings", 1)
    takes: shapes.takes("Takes", "How many takes are drawn of each keyframe")
    handles: shapes.handles("Frames kept before and after each shot for the edit")
    output: shapes.path("Output", "Folder of the drawn keyframes", "DIR_PATH", default="//onmodel")
    model: StringProperty(
        name="Model",
        description="Model that draws. Empty: the server's first",
        search=_search_models,
        search_options={"SUGGESTION"},
    )
    preset: StringProperty(
        name="Sampler",
        description="Sampling preset of the server. 'default' takes the model's own",
        default="default",
        search=_search_presets,
        search_options={"SUGGESTION"},
    )
    steps: IntProperty(
        name="Steps", description="Sampling steps; 0 takes the preset's", default=0, min=0, max=200
    )
    use_guidance: BoolProperty(
        name="Own guidance", description="Set the guidance, not the preset's", default=False
    )
    guidance: FloatProperty(
        name="Guidance",
        description="How strictly the drawing follows the words",
        default=5.0,
        min=0.0,
        max=30.0,
        soft_max=12.0,
    )
    native_side: shapes.pixels(
        "Drawing size", "Side of the square whose area the model draws; 0 takes the model's own"
    )
    pose: PointerProperty(type=OnmodelMap, name="Pose")
    depth: PointerProperty(type=OnmodelMap, name="Depth")
    normal: PointerProperty(type=OnmodelExtraMap, name="Normals")
    lineart: PointerProperty(type=OnmodelExtraMap, name="Lines")
    face_pass: PointerProperty(type=OnmodelFacePass, name="Face Pass")
    retakes: PointerProperty(type=OnmodelRetakes, name="Retakes")
    loras: CollectionProperty(type=OnmodelLora)
    lora_index: IntProperty()
    shots: CollectionProperty(type=OnmodelShot)
    shot_index: IntProperty(name="Shot", options={"HIDDEN"})
    cast: CollectionProperty(type=OnmodelCharacter)
    cast_index: IntProperty(name="Character", options={"HIDDEN"})


classes: tuple[type, ...] = (
    OnmodelLora,
    *properties_faces.classes,
    OnmodelMesh,
    OnmodelJoint,
    OnmodelCharacter,
    OnmodelKeyframe,
    OnmodelShot,
    OnmodelMap,
    OnmodelExtraMap,
    OnmodelSceneSettings,
)


def register() -> None:
    """Register the groups and hang them on every scene."""
    for cls in classes:
        bpy.utils.register_class(cls)
    bpy.types.Scene.onmodel = PointerProperty(type=OnmodelSceneSettings, name="Onmodel")


def unregister() -> None:
    """Take everything off again; what is stored in files stays there."""
    del bpy.types.Scene.onmodel
    for cls in reversed(classes):
        bpy.utils.unregister_class(cls)
