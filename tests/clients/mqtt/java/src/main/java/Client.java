// HiveMQ's MQTT client, 3.1.1 and 5.

import com.hivemq.client.mqtt.MqttClient;
import com.hivemq.client.mqtt.MqttGlobalPublishFilter;
import com.hivemq.client.mqtt.datatypes.MqttQos;
import com.hivemq.client.mqtt.mqtt3.Mqtt3BlockingClient;
import com.hivemq.client.mqtt.mqtt3.message.publish.Mqtt3Publish;
import com.hivemq.client.mqtt.mqtt5.Mqtt5BlockingClient;
import com.hivemq.client.mqtt.mqtt5.message.publish.Mqtt5Publish;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;

public final class Client {
  static final BlockingQueue<String> arrived = new LinkedBlockingQueue<>();
  static final List<String> got = new ArrayList<>();

  /** What both versions can do. */
  interface Device {
    void subscribe(String topic);

    void publish(String topic, String payload, int qos, boolean retain);

    void leave();
  }

  static boolean present;

  public static void main(String[] arguments) throws Exception {
    String step = arguments[0];
    String name = arguments[3];
    boolean first = step.equals("first");
    URI url = new URI(arguments[2]);
    Device device = arguments[1].equals("5") ? five(url, name, first) : three(url, name, first);
    if (first) {
      device.subscribe("in/" + name + "/#");
      device.publish("state/" + name, "on", 1, true);
      for (int qos = 0; qos < 3; qos++) {
        for (int i = 0; i < 10; i++) device.publish("in/" + name + "/q" + qos, "" + i, qos, false);
      }
      take(30, "in/" + name + "/q");
    } else {
      take(40, "in/" + name + "/later");
      device.subscribe("state/" + name);
      take(1, "state/" + name);
      device.leave();
    }
    String list = got.stream().map(one -> "\"" + one + "\"").collect(Collectors.joining(", "));
    System.out.println("{\"present\": " + present + ", \"got\": [" + list + "]}");
    System.out.flush();
    Runtime.getRuntime().halt(0);
  }

  static void take(int count, String wanted) throws InterruptedException {
    while (count > 0) {
      String one = arrived.poll(40, TimeUnit.SECONDS);
      if (one == null) throw new IllegalStateException("too slow");
      if (one.startsWith(wanted)) {
        got.add(one);
        count--;
      }
    }
  }

  static void note(Object topic, byte[] payload, MqttQos qos) {
    arrived.add(topic + " " + new String(payload, StandardCharsets.UTF_8) + " " + qos.getCode());
  }

  static Device five(URI url, String name, boolean first) {
    Mqtt5BlockingClient client =
        MqttClient.builder().useMqttVersion5().identifier(name).serverHost(url.getHost()).serverPort(url.getPort()).buildBlocking();
    client.toAsync().publishes(MqttGlobalPublishFilter.ALL, one -> note(one.getTopic(), one.getPayloadAsBytes(), one.getQos()));
    var connect = client.connectWith().cleanStart(false).sessionExpiryInterval(3600);
    if (first) {
      connect = connect.willPublish(Mqtt5Publish.builder().topic("will/" + name).payload("gone".getBytes()).qos(MqttQos.AT_LEAST_ONCE).build());
    }
    present = connect.send().isSessionPresent();
    return new Device() {
      public void subscribe(String topic) {
        client.subscribeWith().topicFilter(topic).qos(MqttQos.EXACTLY_ONCE).send();
      }

      public void publish(String topic, String payload, int qos, boolean retain) {
        client.publishWith().topic(topic).payload(payload.getBytes()).qos(MqttQos.fromCode(qos)).retain(retain).send();
      }

      public void leave() {
        client.disconnect();
      }
    };
  }

  static Device three(URI url, String name, boolean first) {
    Mqtt3BlockingClient client =
        MqttClient.builder().useMqttVersion3().identifier(name).serverHost(url.getHost()).serverPort(url.getPort()).buildBlocking();
    client.toAsync().publishes(MqttGlobalPublishFilter.ALL, one -> note(one.getTopic(), one.getPayloadAsBytes(), one.getQos()));
    var connect = client.connectWith().cleanSession(false);
    if (first) {
      connect = connect.willPublish(Mqtt3Publish.builder().topic("will/" + name).payload("gone".getBytes()).qos(MqttQos.AT_LEAST_ONCE).build());
    }
    present = connect.send().isSessionPresent();
    return new Device() {
      public void subscribe(String topic) {
        client.subscribeWith().topicFilter(topic).qos(MqttQos.EXACTLY_ONCE).send();
      }

      public void publish(String topic, String payload, int qos, boolean retain) {
        client.publishWith().topic(topic).payload(payload.getBytes()).qos(MqttQos.fromCode(qos)).retain(retain).send();
      }

      public void leave() {
        client.disconnect();
      }
    };
  }
}
