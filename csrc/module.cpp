// SPDX-License-Identifier: Apache-2.0
//
// swin_fast._C: the build facts, for people at a Python prompt. It links none of the op libraries, since a second copy
// of one would register its operators twice: it asks the copy that the process has already loaded, if there is one.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

// The folder this module was loaded from; the op libraries lie in lib/ beside it.
std::string module_folder() {
  static const char anchor = 0;
  Dl_info info;
  if (dladdr(&anchor, &info) == 0) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// What  swin_fast_<name>_build_info()  of the loaded library says, or None while it is not loaded.
py::object facts_of(const std::string& name) {
  const std::string path = module_folder() + "/lib/libswin_fast_" + name + ".so";
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return py::none();
  const std::string function = "swin_fast_" + name + "_build_info";
  auto* build_info = reinterpret_cast<const char* (*)()>(dlsym(library, function.c_str()));
  py::object facts = py::none();
  if (build_info != nullptr) facts = py::module_::import("json").attr("loads")(build_info());
  dlclose(library);
  return facts;
}

py::dict build_info() {
  py::dict facts;
  facts["compiler"] = __VERSION__;
  facts["python"] = PY_VERSION;
  facts["cpu"] = facts_of("cpu");
  facts["cuda"] = facts_of("cuda");
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of swin_fast's native code. Optional: nothing in the package needs it.";
  m.def("build_info", &build_info,
        "The build facts: compiler and Python of this module; under \"cpu\" and \"cuda\" those of the loaded "
        "libraries, or None while they are not loaded.");
}
