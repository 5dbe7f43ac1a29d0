"""What makes a notebook's run another one: code, data and versions, but no docstring."""

from nbformat.v4 import new_code_cell, new_notebook

from e2lib.course import notebook

CODE = '"""Doc."""\n\n\ndef f(x):\n    """Doc."""\n    return x  # why\n'


def test_docstrings_and_comments_are_no_code():
    same = "def f(x): return x"
    assert notebook.essence(CODE) == notebook.essence(same) != notebook.essence(same + " + 1")
    assert notebook.essence("class A:\n    '''Doc.'''") == notebook.essence("class A:\n    '''Other.'''\n")


def test_the_origin_follows_all_that_numbers_come_from(tmp_path, monkeypatch, request):
    request.addfinalizer(notebook._around.cache_clear)
    package = tmp_path / "e2lib"
    (package / "sub").mkdir(parents=True)
    (package / "course").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(notebook, "PACKAGE", package)
    monkeypatch.setattr(notebook, "DATA", tmp_path / "data")
    cells = ["from e2lib.course import widgets", "1"]

    def found(path, text, cells=cells):
        path.write_text(text)
        notebook._around.cache_clear()
        return notebook.origin(cells)

    for name in notebook.SHOWN:
        (package / "course" / f"{name}.py").write_text("")
    first = found(package / "sub" / "deep.py", CODE)
    assert found(package / "sub" / "deep.py", CODE.replace("Doc", "Other").replace("why", "because")) == first
    assert found(package / "course" / "run.py", "a = 1") == first  # it changes no number
    assert found(package / "course" / "claims.py", "a = 1") == first  # the cells show none
    assert found(tmp_path / "data" / "README.md", "text") == first
    others = {
        found(package / "sub" / "deep.py", CODE + "a = 1"),
        found(package / "course" / "widgets.py", "a = 1"),
        found(tmp_path / "data" / "bird.webp", "photograph"),
        notebook.origin([*cells, "2"]),
    }
    monkeypatch.setattr(notebook, "version", lambda name: "0.1")
    others.add(found(package / "sub" / "deep.py", CODE))
    assert len({first, *others}) == 6


def test_the_authors_code_is_not_papermills_nor_the_readers():
    cells = [new_code_cell("1"), new_code_cell(" "), new_code_cell("2"), new_code_cell("3")]
    cells[2].metadata["tags"] = ["injected-parameters"]
    cells[3].metadata["tags"] = [notebook.EXERCISE]
    whole = new_notebook(cells=cells)
    assert [cell.source for cell in notebook.code_cells(whole)] == ["1"]
    assert notebook.source_hash(whole) == notebook.source_hash(new_notebook(cells=cells[:1]))
