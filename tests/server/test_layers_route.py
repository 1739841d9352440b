"""The route that tells the canvas which layers a model has."""

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest

from guidance_lab.xti.layers import named_table, table_for


def ask(server, **query) -> dict:
    return server.get("/guidance_lab/layers" + ("?" + urllib.parse.urlencode(query) if query else ""))


def test_typical_families(server):
    families = ask(server)["families"]
    assert [family["name"] for family in families[:3]] == ["SD1.x", "SD2.x", "SDXL"]
    sdxl = families[2]
    assert [layer["name"] for layer in sdxl["plain"]["layers"]] == list(named_table("sdxl").names)
    assert len(sdxl["single"]["layers"]) == 70
    assert families[0]["plain"]["inside_out"] == list(named_table("sd1").inside_out())


def test_a_recipe_gives_its_tables(server):
    table = table_for({"image_model": "wan2.1", "num_layers": 7})
    told = ask(server, recipe=table.recipe)
    assert (told["name"], len(told["plain"]["layers"]), told["plain"]["recipe"]) == ("Wan", 7, table.recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        "{", "[]", "[" * 2000, json.dumps({"image_model": "flux"}), json.dumps({"image_model": "wan2.1",
        "num_layers": 10**9}),
        json.dumps({**json.loads(named_table("sd1").recipe), "transformer_depth_middle": 10**12}),
        json.dumps({**json.loads(named_table("sd1").recipe), "num_res_blocks": [1] * 10}),
        json.dumps({**json.loads(named_table("sd1").recipe), "num_res_blocks": "many"}),
        json.dumps({**json.loads(named_table("sd1").recipe), "transformer_depth": [True, "a"]}), "x" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_with_a_sentence(server, recipe):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(
            f"{server.url}/guidance_lab/layers?{urllib.parse.urlencode({'recipe': recipe})}", timeout=60
        )
    assert refused.value.code == 400
    assert json.load(refused.value)["error"].endswith(".")


def test_a_node_that_never_ran_is_unknown(server):
    assert ask(server, node="31:4") == {"recipe": None}
