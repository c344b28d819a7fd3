"""Images are counted from a server's metrics."""

from __future__ import annotations

from benchmarks.usage import count_images


def test_images_are_counted_for_the_model_asked_for_and_all_its_versions() -> None:
    metrics = (
        "# HELP nv_inference_count Number of inferences performed\n"
        'nv_inference_count{model="animals",version="1"} 12\n'
        'nv_inference_count{model="animals",version="2"} 3\n'
        'nv_inference_count{model="animals_engine",version="1"} 15\n'
        'nv_inference_request_success{model="animals",version="1"} 7\n'
    )
    assert count_images(metrics, "animals") == 15
