// swift-tools-version:5.9
// libpmpd for apps on macOS and iOS: the C API of ../pmpd/pmpd.h as the module CPmpd, with a short example.
// Not built yet where this was written: it wants Xcode. build_xcframework.sh makes the library first.
import PackageDescription

let package = Package(
    name: "pmpd",
    platforms: [.macOS(.v14), .iOS(.v17)],
    products: [.library(name: "CPmpd", targets: ["CPmpd"])],
    targets: [
        .binaryTarget(name: "CPmpd", path: "build/pmpd.xcframework"),
        .executableTarget(
            name: "Example",
            dependencies: ["CPmpd"],
            linkerSettings: [.linkedFramework("Accelerate"), .linkedFramework("Metal"), .linkedLibrary("c++")]
        ),
    ]
)
