"""Tests the server's API with OpenAI's own client."""

import base64
import io
import json
import urllib.error
import urllib.request

import openai
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)


def picture(entry):
    return Image.open(io.BytesIO(base64.b64decode(entry.b64_json)))


def made(image):
    return json.loads(image.text["tessera"])


@pytest.fixture(scope="module")
def cat(client, tmp_path_factory):
    answer = client.images.generate(model="dall-e-2", prompt="a cat, noto style", response_format="b64_json", extra_body={"seed": 4})
    path = tmp_path_factory.mktemp("cat") / "cat.png"
    path.write_bytes(base64.b64decode(answer.data[0].b64_json))
    return path


def test_models(client):
    models = client.models.list().data
    assert len(models) == 1 and models[0].id.startswith("tessera-") and models[0].owned_by == "tessera"


def test_one_model(client):
    assert client.models.retrieve("dall-e-3") == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="There is no model 'sdxl' here"):
        client.models.retrieve("sdxl")


def test_default_response_format_of_each_model(client, cat):
    for model in ["dall-e-2", "dall-e-3"]:
        assert client.images.generate(model=model, prompt="a red apple").data[0].url
    assert client.images.generate(model="gpt-image-1", prompt="a red apple").data[0].b64_json
    assert client.images.create_variation(image=open(cat, "rb")).data[0].url


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_formats(client, format):
    answer = client.images.generate(model="gpt-image-1", prompt="a red apple", output_format=format, output_compression=50)
    assert answer.output_format == format and picture(answer.data[0]).format == format.upper()


def test_generations(client):
    answer = client.images.generate(model="gpt-image-1", prompt="a red apple", n=3, size="256x256", quality="low", user="me")
    assert len(answer.data) == 3 and answer.created > 0 and answer.usage.output_tokens > 0
    for entry in answer.data:
        assert picture(entry).size == (256, 256) and entry.revised_prompt == "a red apple"


def test_response_format_url(client):
    answer = client.images.generate(prompt="a red apple", response_format="url")
    with urllib.request.urlopen(answer.data[0].url) as response:
        assert response.headers["content-type"] == "image/png"
        assert made(Image.open(io.BytesIO(response.read())))["prompts"] == ["a red apple"]


def test_streaming(client):
    events = list(client.images.generate(prompt="a red apple", stream=True, partial_images=3, extra_body={"best_of": 1}))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    final = picture(events[-1])
    # The tokens of a partial picture are the first tokens of the final one.
    assert made(picture(events[0]))["tokens"] == made(final)["tokens"][: len(made(picture(events[0]))["tokens"])]
    assert events[-1].usage.output_tokens == 144


def test_edits(client, cat):
    mask = Image.new("RGBA", Image.open(cat).size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 96, 192, 192))
    file = io.BytesIO()
    mask.save(file, "PNG")
    answer = client.images.edit(image=open(cat, "rb"), mask=("mask.png", file.getvalue()), prompt="a red apple", n=2)
    original = made(Image.open(cat))["tokens"]
    for entry in answer.data:
        tokens = made(picture(entry))["tokens"]
        assert tokens[:72] == original[:72] and tokens[72:] != original[72:]


def test_edits_stream(client, cat):
    events = list(client.images.edit(image=[open(cat, "rb")], prompt="a cat", stream=True, partial_images=1, extra_body={"keep_rows": 6}))
    assert [event.type for event in events][-1] == "image_edit.completed"


def test_variations(client, cat):
    answer = client.images.create_variation(image=open(cat, "rb"), n=2, size="256x256", response_format="b64_json")
    tokens = [made(picture(entry))["tokens"] for entry in answer.data]
    assert tokens[0] != tokens[1]


def test_edit_with_two_pictures_is_refused(client, cat):
    assert client.images.edit(image=[open(cat, "rb")], prompt="a cat", extra_body={"keep_rows": 6}).data
    with pytest.raises(openai.BadRequestError, match="'image' comes twice: wanted one picture"):
        client.images.edit(image=[open(cat, "rb"), open(cat, "rb")], prompt="a cat", extra_body={"keep_rows": 6})


@pytest.mark.parametrize("size", [300_000, 30_000_000])
def test_oversized_request_gets_413(server, size):
    """The client reads no answer before it has sent everything."""
    request = urllib.request.Request(f"{server}/v1/images/generations", b"0" * size, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=30)
    assert error.value.code == 413


def test_errors_raise_the_clients_exceptions(client, cat):
    with pytest.raises(openai.BadRequestError, match="wanted a whole number from 1 to 64") as error:
        client.images.generate(prompt="a", n=0)
    assert error.value.param == "n" and error.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError, match="There is no model"):
        client.images.generate(prompt="a", model="sdxl")
    with pytest.raises(openai.BadRequestError, match="Which cells of the picture are kept"):
        client.images.edit(image=open(cat, "rb"), prompt="a cat")
