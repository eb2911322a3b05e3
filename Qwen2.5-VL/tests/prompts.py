"""Prompts with images and videos of any size, as a processor would make them."""

import torch

PAD, IMAGE, VIDEO, START, END = 0, 600, 601, 602, 603
MERGE = 4  # patches that the vision tower merges into one vision token
PATCH = 3 * 2 * 14 * 14


def vision(token, grid):
    """The tokens of an image or video of (frames, rows, columns) patches."""
    frames, rows, columns = grid
    return [START, *[token] * (frames * rows * columns // MERGE), END]


# Each: token ids, grids of images, grids of videos.
NOTHING = ([1, 30, 31, 32], [], [])
ONE = ([1, 7, *vision(IMAGE, (1, 8, 12)), 41, 42], [(1, 8, 12)], [])
THREE = (
    [
        *(1, *vision(IMAGE, (1, 4, 4)), 50, *vision(IMAGE, (1, 6, 10)), 51),
        *(*vision(IMAGE, (1, 8, 4)), 52, 53, 54),
    ],
    [(1, 4, 4), (1, 6, 10), (1, 8, 4)],
    [],
)
FILM = ([1, 9, *vision(VIDEO, (3, 4, 6)), 60], [], [(3, 4, 6)])
BOTH = (
    [1, *vision(VIDEO, (2, 4, 4)), 61, *vision(IMAGE, (1, 4, 8)), 62],
    [(1, 4, 8)],
    [(2, 4, 4)],
)


def _pixels(grid):
    frames, rows, columns = grid
    generator = torch.Generator().manual_seed(frames * 10000 + rows * 100 + columns)
    return torch.randn(frames * rows * columns, PATCH, generator=generator)


def batch(prompts):
    """The left-padded inputs of `generate`."""
    length = max(len(ids) for ids, _, _ in prompts)
    ids = torch.tensor([[PAD] * (length - len(ids)) + ids for ids, _, _ in prompts])
    inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    images = [grid for _, grids, _ in prompts for grid in grids]
    videos = [grid for _, _, grids in prompts for grid in grids]
    if images:
        inputs["pixel_values"] = torch.cat([_pixels(grid) for grid in images])
        inputs["image_grid_thw"] = torch.tensor(images)
    if videos:
        inputs["pixel_values_videos"] = torch.cat([_pixels(grid) for grid in videos])
        inputs["video_grid_thw"] = torch.tensor(videos)
        inputs["second_per_grid_ts"] = [1.0] * len(videos)
    return inputs
