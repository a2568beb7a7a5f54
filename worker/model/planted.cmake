# The loader's own tests of its tests: builds of model_test with one classic
# defect of loaders in the product's source must fail by the named test. The
# linker takes the planted source instead of the library's, because it defines
# the same functions.

# invar_planted_load(DEFECT SOURCE FROM TO TEST): in worker/model/SOURCE, FROM,
# which stands there once, becomes TO; TEST sees it.
function(invar_planted_load defect source from to test)
  set(path ${CMAKE_CURRENT_SOURCE_DIR}/${source})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  file(READ ${path} text)
  string(REPLACE "${from}" "" without "${text}")
  string(LENGTH "${text}" length)
  string(LENGTH "${without}" length_without)
  string(LENGTH "${from}" length_from)
  math(EXPR times "(${length} - ${length_without}) / ${length_from}")
  if(NOT times EQUAL 1)
    message(FATAL_ERROR "planted ${defect}: '${from}' stands ${times} times in "
                        "worker/model/${source}; plant it where it is now")
  endif()
  string(REPLACE "${from}" "${to}" text "${text}")
  set(planted ${CMAKE_CURRENT_BINARY_DIR}/planted/${defect}.cc)
  file(CONFIGURE OUTPUT ${planted} CONTENT "${text}" @ONLY)

  set(name model_test_planted_${defect})
  invar_binary(${name} ${planted} $<TARGET_OBJECTS:model_test_objects>
               DEPENDS invar_model_testing GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                                           ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME load_finds_${defect} COMMAND ${name} --gtest_filter=${test}
           WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  string(REPLACE "*" "" shown "${test}")
  set_tests_properties(load_finds_${defect} PROPERTIES
                       PASS_REGULAR_EXPRESSION "FAILED  \\] ${shown}")
endfunction()

# Two tensors may own the same bytes.
invar_planted_load(
  overlap checkpoint/safetensors.cc
  [[begin != expected]] [[begin > expected]]
  MutantsTest.AreRefusedOrTheSame)
# A tensor's bytes need not be those of its shape.
invar_planted_load(
  byte_length checkpoint/safetensors.cc
  [[*end - *begin != bytes]] [[false]]
  LoadTest.LyingHeader)
# up_proj of an expert has the scale of gate_proj.
invar_planted_load(
  scale_of_another weights.cc
  [[layer.experts.push_back({expert.gate, expert.up, expert.down});]]
  [[layer.experts.push_back({expert.gate, expert.up, expert.down});
    layer.experts.back().up.scale = expert.gate.scale;]]
  Formats/FormatGoldenTest.LogitsMatchTheReference/lite_autofp8)
# A square of block scales is read by columns.
invar_planted_load(
  scales_transposed checkpoint/loader.cc
  [[  tensor.dtype = TensorDtype::kF32;]]
  [[  tensor.dtype = TensorDtype::kF32;
  float* scales = reinterpret_cast<float*>(tensor.data);
  for (int64_t i = 0; tensor.shape.size() == 2 && i < tensor.shape[0]; ++i) {
    for (int64_t j = 0; tensor.shape[0] == tensor.shape[1] && j < i; ++j) {
      std::swap(scales[i * tensor.shape[0] + j],
                scales[j * tensor.shape[0] + i]);
    }
  }]]
  Formats/FormatGoldenTest.LogitsMatchTheReference/lite_block)
# Scales of the transposed weight are taken for its own.
invar_planted_load(
  scale_shape checkpoint/architecture.cc
  [[shape == std::vector<int64_t>{spec.shape[0]}]] [[shape.size() <= 2]]
  LoadTest.TransposedBlockScales)
# Of swapped shards the index is believed.
invar_planted_load(
  swapped_shards checkpoint/shards.cc
  [[it->second.file->path() != std::string(folder / file)]] [[false]]
  LoadTest.SwappedShards)
invar_planted_load(
  dtype checkpoint/shards.cc
  [[DtypeFits(spec.kind, tensor->dtype)]]
  [[(true || DtypeFits(spec.kind, tensor->dtype))]]
  LoadTest.MissingLeftOverOrMisshapenTensor)
invar_planted_load(
  shape checkpoint/shards.cc
  [[ShapeFits(spec, tensor->shape)]] [[true]]
  LoadTest.MissingLeftOverOrMisshapenTensor)
# What is read in blocks stays where the blocks are.
invar_planted_load(
  unmoved checkpoint/loader.cc
  [[if (block != chunk)]] [[if (false)]]
  TensorStoreTest.LargeTensorsAreReadWhole)
# Each piece of a store's tensor goes to its beginning.
invar_planted_load(
  store_place checkpoint/loader.cc
  [[task_.stored + begin_]] [[task_.stored]]
  TensorStoreTest.AStoreGetsEveryByte)
# Of two tensors that are hashed at once, one has the other's bytes.
invar_planted_load(
  digest_of_another checkpoint/tensor_digest.cc
  [[{bytes_a.data(), bytes_b.data()}]] [[{bytes_a.data(), bytes_a.data()}]]
  TensorDigest.IsOpensslsInAnyParts)
