/* Every Objective-C message that the Metal driver sends, once:
 * METHOD(class, name, "selector", returns, argument types…).
 *
 * The driver makes a typed function of each row, the fake Metal of test/metal/host/ is held to the same types, and
 * test/metal/oracle/selectors.ts compares them with Apple's own headers. No method here returns a struct, is
 * given a block (a deallocator is nil), or throws on an argument that the driver passes. */
#ifndef BNB_METAL_SELECTORS_H
#define BNB_METAL_SELECTORS_H

#define METAL_METHODS(METHOD)                                                                                          \
    METHOD(NSObject, new, "new", id)                                                                                   \
    METHOD(NSObject, retain, "retain", id)                                                                             \
    METHOD(NSObject, release, "release", void)                                                                         \
    METHOD(NSObject, respondsToSelector, "respondsToSelector:", bool, SEL)                                             \
    METHOD(NSArray, count, "count", NSUInteger)                                                                        \
    METHOD(NSArray, objectAtIndex, "objectAtIndex:", id, NSUInteger)                                                   \
    METHOD(NSString, stringWithUTF8String, "stringWithUTF8String:", id, const char *)                                  \
    METHOD(NSString, UTF8String, "UTF8String", const char *)                                                           \
    METHOD(NSError, localizedDescription, "localizedDescription", id)                                                  \
    METHOD(NSURL, fileURLWithPath, "fileURLWithPath:", id, id)                                                         \
    METHOD(NSProcessInfo, processInfo, "processInfo", id)                                                              \
    METHOD(NSProcessInfo, operatingSystemVersionString, "operatingSystemVersionString", id)                            \
    METHOD(NSProcessInfo, isOperatingSystemAtLeastVersion, "isOperatingSystemAtLeastVersion:", bool,                   \
           NSOperatingSystemVersion)                                                                                   \
    METHOD(MTLDevice, name, "name", id)                                                                                \
    METHOD(MTLDevice, supportsFamily, "supportsFamily:", bool, NSInteger)                                              \
    METHOD(MTLDevice, recommendedMaxWorkingSetSize, "recommendedMaxWorkingSetSize", uint64_t)                          \
    METHOD(MTLDevice, maxBufferLength, "maxBufferLength", NSUInteger)                                                  \
    METHOD(MTLDevice, newCommandQueue, "newCommandQueue", id)                                                          \
    METHOD(MTLDevice, newBufferWithLength_options, "newBufferWithLength:options:", id, NSUInteger, NSUInteger)         \
    METHOD(MTLDevice, newBufferWithBytesNoCopy_length_options_deallocator,                                             \
           "newBufferWithBytesNoCopy:length:options:deallocator:", id, void *, NSUInteger, NSUInteger, const void *)   \
    METHOD(MTLDevice, newResidencySetWithDescriptor_error, "newResidencySetWithDescriptor:error:", id, id, id *)       \
    METHOD(MTLDevice, newLibraryWithSource_options_error, "newLibraryWithSource:options:error:", id, id, id, id *)     \
    METHOD(MTLDevice, newLibraryWithURL_error, "newLibraryWithURL:error:", id, id, id *)                               \
    METHOD(MTLDevice, newComputePipelineStateWithFunction_error, "newComputePipelineStateWithFunction:error:", id, id, \
           id *)                                                                                                       \
    METHOD(MTLCaptureManager, sharedCaptureManager, "sharedCaptureManager", id)                                        \
    METHOD(MTLCaptureManager, supportsDestination, "supportsDestination:", bool, NSInteger)                            \
    METHOD(MTLCaptureManager, startCaptureWithDescriptor_error, "startCaptureWithDescriptor:error:", bool, id, id *)   \
    METHOD(MTLCaptureManager, stopCapture, "stopCapture", void)                                                        \
    METHOD(MTLCaptureDescriptor, setCaptureObject, "setCaptureObject:", void, id)                                      \
    METHOD(MTLCaptureDescriptor, setDestination, "setDestination:", void, NSInteger)                                   \
    METHOD(MTLCaptureDescriptor, setOutputURL, "setOutputURL:", void, id)                                              \
    METHOD(MTLCompileOptions, setLanguageVersion, "setLanguageVersion:", void, NSUInteger)                             \
    METHOD(MTLCompileOptions, setMathMode, "setMathMode:", void, NSInteger)                                            \
    METHOD(MTLCompileOptions, setMathFloatingPointFunctions, "setMathFloatingPointFunctions:", void, NSInteger)        \
    METHOD(MTLCompileOptions, setFastMathEnabled, "setFastMathEnabled:", void, bool)                                   \
    METHOD(MTLLibrary, newFunctionWithName, "newFunctionWithName:", id, id)                                            \
    METHOD(MTLLibrary, newFunctionWithName_constantValues_error, "newFunctionWithName:constantValues:error:", id, id,  \
           id, id *)                                                                                                   \
    METHOD(MTLFunction, setLabel, "setLabel:", void, id)                                                               \
    METHOD(MTLFunctionConstantValues, setConstantValue_type_atIndex, "setConstantValue:type:atIndex:", void,           \
           const void *, NSUInteger, NSUInteger)                                                                       \
    METHOD(MTLComputePipelineState, maxTotalThreadsPerThreadgroup, "maxTotalThreadsPerThreadgroup", NSUInteger)        \
    METHOD(MTLBuffer, contents, "contents", void *)                                                                    \
    METHOD(MTLBuffer, setLabel, "setLabel:", void, id)                                                                 \
    METHOD(MTLResidencySet, addAllocation, "addAllocation:", void, id)                                                 \
    METHOD(MTLResidencySet, removeAllocation, "removeAllocation:", void, id)                                           \
    METHOD(MTLResidencySet, commit, "commit", void)                                                                    \
    METHOD(MTLResidencySet, requestResidency, "requestResidency", void)                                                \
    METHOD(MTLCommandQueue, setLabel, "setLabel:", void, id)                                                           \
    METHOD(MTLCommandQueue, addResidencySet, "addResidencySet:", void, id)                                             \
    METHOD(MTLCommandQueue, commandBufferWithUnretainedReferences, "commandBufferWithUnretainedReferences", id)        \
    METHOD(MTLCommandBuffer, computeCommandEncoderWithDispatchType, "computeCommandEncoderWithDispatchType:", id,      \
           NSUInteger)                                                                                                 \
    METHOD(MTLCommandBuffer, setLabel, "setLabel:", void, id)                                                          \
    METHOD(MTLCommandBuffer, commit, "commit", void)                                                                   \
    METHOD(MTLCommandBuffer, waitUntilCompleted, "waitUntilCompleted", void)                                           \
    METHOD(MTLCommandBuffer, status, "status", NSUInteger)                                                             \
    METHOD(MTLCommandBuffer, error, "error", id)                                                                       \
    METHOD(MTLCommandBuffer, GPUStartTime, "GPUStartTime", double)                                                     \
    METHOD(MTLCommandBuffer, GPUEndTime, "GPUEndTime", double)                                                         \
    METHOD(MTLComputeCommandEncoder, setLabel, "setLabel:", void, id)                                                  \
    METHOD(MTLComputeCommandEncoder, pushDebugGroup, "pushDebugGroup:", void, id)                                      \
    METHOD(MTLComputeCommandEncoder, popDebugGroup, "popDebugGroup", void)                                             \
    METHOD(MTLComputeCommandEncoder, setComputePipelineState, "setComputePipelineState:", void, id)                    \
    METHOD(MTLComputeCommandEncoder, setBuffer_offset_atIndex, "setBuffer:offset:atIndex:", void, id, NSUInteger,      \
           NSUInteger)                                                                                                 \
    METHOD(MTLComputeCommandEncoder, setBytes_length_atIndex, "setBytes:length:atIndex:", void, const void *,          \
           NSUInteger, NSUInteger)                                                                                     \
    METHOD(MTLComputeCommandEncoder, setThreadgroupMemoryLength_atIndex, "setThreadgroupMemoryLength:atIndex:", void,  \
           NSUInteger, NSUInteger)                                                                                     \
    METHOD(MTLComputeCommandEncoder, dispatchThreadgroups_threadsPerThreadgroup,                                       \
           "dispatchThreadgroups:threadsPerThreadgroup:", void, MTLSize, MTLSize)                                      \
    METHOD(MTLComputeCommandEncoder, memoryBarrierWithScope, "memoryBarrierWithScope:", void, NSUInteger)              \
    METHOD(MTLComputeCommandEncoder, endEncoding, "endEncoding", void)

#endif
