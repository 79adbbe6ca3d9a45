#!/usr/bin/python3
"""Holds the parts to cmake/Layers.cmake: what they include, and what CMake lets them link."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = (".h", ".cc", ".c")
INCLUDE = re.compile(r'^\s*#\s*include\s*["<]([^">]+)[">]', re.MULTILINE)
IMPORT = re.compile(r'^\s*import\s+(?:public\s+|weak\s+)?"([^"]+)"\s*;', re.MULTILINE)


def read_table(root):
    """The allow-list: part -> the parts it may use."""
    text = (root / "cmake" / "Layers.cmake").read_text()
    rows = re.findall(r"^set\(WAFT_MAY_USE_(\w+)\s+([^)]*)\)", text, re.MULTILINE)
    return {part: set(used.replace('"', " ").split()) for part, used in rows}


def violations(root):
    """Every include (or import of a .proto) of another part that the table does not allow."""
    table = read_table(root)
    found = []
    for part, allowed in table.items():
        for path in sorted((root / part).rglob("*")):
            if path.suffix in SOURCES:
                included = INCLUDE.findall(path.read_text())
            elif path.suffix == ".proto":
                included = IMPORT.findall(path.read_text())
            else:
                continue
            for name in included:
                # Relative paths are resolved, so that "../other/x.h" is seen for what it is.
                used = pathlib.PurePosixPath(name).parts[0]
                if used in (".", ".."):
                    used = (path.parent / name).resolve().relative_to(root.resolve()).parts[0]
                if used in table and used != part and used not in allowed:
                    found.append(f"{path.relative_to(root)} includes {name}: "
                                 f"{part}/ may use {sorted(allowed)}")
    return found


class IncludesTest(unittest.TestCase):
    def test_every_include_is_allowed(self):
        self.assertEqual(violations(ROOT), [])

    def test_the_table_names_every_part(self):
        parts = {path.parent.name for path in ROOT.glob("*/CMakeLists.txt")
                 if "waft_part(" in path.read_text()}
        self.assertEqual(parts - read_table(ROOT).keys(), set())

    def test_the_table_has_no_circle(self):
        table = read_table(ROOT)
        for part, allowed in table.items():
            self.assertLessEqual(allowed, table.keys(), f"{part} uses a part that is not there")
        placed = set()
        while len(placed) < len(table):
            ready = {part for part, allowed in table.items() if part not in placed and allowed <= placed}
            self.assertTrue(ready, f"a circle among {sorted(table.keys() - placed)}")
            placed |= ready


class ViolationsTest(unittest.TestCase):
    """The checker itself, on a tree made for it."""

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="waft-layers-"))
        self.addCleanup(shutil.rmtree, self.root)
        self.write("cmake/Layers.cmake",
                   'set(WAFT_MAY_USE_low "")\nset(WAFT_MAY_USE_high low)\n')
        self.write("low/a.h", "#pragma once\n")
        self.write("high/b.h", '#include <vector>\n#include "low/a.h"\n#include "high/c.h"\n')

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def test_allowed_includes_pass(self):
        self.assertEqual(violations(self.root), [])

    def test_an_include_of_a_higher_part_is_found(self):
        self.write("low/bad.cc", '#include "low/a.h"\n#include "high/b.h"\n')
        self.assertEqual(violations(self.root),
                         ["low/bad.cc includes high/b.h: low/ may use []"])

    def test_other_spellings_are_found(self):
        for include in ('#include <high/b.h>', '  #  include  "high/b.h"',
                        '#include "../high/b.h"', '#include "./../high/b.h"'):
            self.write("low/bad.h", include + "\n")
            self.assertEqual(len(violations(self.root)), 1, include)

    def test_tests_and_deeper_folders_count(self):
        self.write("low/deep/er/bad_test.cc", '#include "high/b.h"\n')
        self.assertEqual(len(violations(self.root)), 1)

    def test_imports_of_protos_count(self):
        self.write("low/bad.proto", 'import "high/b.proto";\n')
        self.assertEqual(len(violations(self.root)), 1)


class ConfigureTest(unittest.TestCase):
    """waft_part() and waft_check_layers() in a CMake project that is just large enough for them."""

    def configure(self, low, after=""):
        root = pathlib.Path(tempfile.mkdtemp(prefix="waft-layers-"))
        self.addCleanup(shutil.rmtree, root)
        shutil.copytree(ROOT / "cmake", root / "cmake")
        (root / "cmake" / "Layers.cmake").write_text(
            'set(WAFT_MAY_USE_low "")\nset(WAFT_MAY_USE_high low)\n')
        (root / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.25)\n"
            "project(layers LANGUAGES NONE)\n"
            "include(cmake/WaftPart.cmake)\n"
            "add_subdirectory(high)\nadd_subdirectory(low)\n"
            "waft_check_layers()\n")
        for part, text in (("low", low), ("high", "waft_part(high SOURCES part.cc USES low)")):
            (root / part).mkdir()
            (root / part / "CMakeLists.txt").write_text(text + "\n" + (after if part == "low" else ""))
            (root / part / "part.cc").write_text("")
        # No compiler is needed: the project has no language, so generating is what may still fail.
        return subprocess.run(["cmake", "-S", root, "-B", root / "build"], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)

    def test_an_allowed_use_configures(self):
        result = self.configure("waft_part(low SOURCES part.cc)")
        self.assertIn("Configuring done", result.stdout)
        self.assertNotIn("may not use", result.stdout)

    def test_a_use_that_is_not_allowed_fails(self):
        result = self.configure("waft_part(low SOURCES part.cc USES high)")
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("low/ may not use high/", result.stdout)
        self.assertNotIn("Configuring done", result.stdout)

    def test_a_link_behind_its_back_fails(self):
        for link in ("waft::high", "waft_high"):
            result = self.configure("waft_part(low SOURCES part.cc)",
                                    f"target_link_libraries(waft_low PUBLIC {link})")
            self.assertNotEqual(result.returncode, 0)
            self.assertRegex(result.stdout, rf"waft_low links\s+{link}")
            self.assertNotIn("Configuring done", result.stdout)


if __name__ == "__main__":
    unittest.main()
